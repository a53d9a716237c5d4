// Weight gradients: dW = dgatesᵀ·[x | h'], one product over all T·B rows, with the bias gradients on the way.
//
// Both factors have the long dimension (rows) outermost, so blocks of rows are packed: dgates in panels of `height`
// columns, x and h' in panels of up to two SIMD columns. A dgates panel stays in the first-level cache while the panels of
// x and h' stream past. Blocks of rows are added in their order: the sum does not depend on the number of threads.
#pragma once

#include "few_rows.h"
#include "product.h"

namespace tbptt {
namespace TBPTT_ISA {

namespace gradient {
constexpr int vectors = 2;
constexpr int height = TBPTT_REGISTERS == 32 ? 14 : 6;
template <class T>
constexpr int width = vectors * lanes<T>;
template <class T>
constexpr int64_t block = 1024 / sizeof(T);  // rows packed at a time

// c [Height][Vectors][lanes] += Σ over `rows` of `count` steps of a[step][Height] · b[step][Vectors][lanes]; steps are
// a_step and b_step apart, the rows of a a_row.
template <class T, int Height, int Vectors, bool Fetch>
void tile(int64_t rows, int64_t count, const T* a, int64_t a_step, int64_t a_row, const T* b, int64_t b_step, T* c,
          AheadRows<T> ahead) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[r][v] = load(c + (r * Vectors + v) * L);
    for (; rows > 0; --rows, a += a_row) {
        const T* from = a;
#pragma GCC unroll 1
        for (int64_t i = 0; i < count; ++i, from += a_step, b += b_step) {
            Vec<T> column[Vectors];
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * L);
            if (Fetch) {
                prefetch<Vectors>(b + 2 * panel_ahead * Vectors * L);
                ahead.fetch();
            }
#pragma GCC unroll 16
            for (int r = 0; r < Height; ++r) {
                const Vec<T> factor = broadcast(from[r]);
#pragma GCC unroll 2
                for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * column[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) store(c + (r * Vectors + v) * L, sum[r][v]);
}

template <class T>
using Tile = void (*)(int64_t rows, int64_t count, const T* a, int64_t a_step, int64_t a_row, const T* b,
                      int64_t b_step, T* c, AheadRows<T> ahead);

template <class T, bool Fetch>
TBPTT_INLINE Tile<T> find_tile(int rows, int columns) {
    return with_constant<vectors>(columns, [&](auto v) {
        return with_constant<height>(
            rows, [](auto h) -> Tile<T> { return tile<T, decltype(h)::value, decltype(v)::value, Fetch>; });
    });
}
}  // namespace gradient

// One right-hand factor and where its gradient goes.
template <class T>
struct GradientOperand {
    const T* const* rows;  // [depth], each [columns]; null for a row of zeros
    int64_t columns;
    T* weight;                          // out = [·, columns], `row_stride` and `column_stride` apart; or null
    T* bias;                            // out = [·] or null
    int kind;                           // which of a block's rows is meant
    int64_t row_stride, column_stride;  // of the weight's gradient
};

// Columns of dgates that share their operands: `row[kind]` is the first row of such operands' gradients that they fill, or
// -1.
struct GradientBlock {
    int64_t first, columns;
    int64_t row[2];
};

template <class T>
class WeightGradient {
   public:
    // a [depth][lda]; the blocks cover the columns in order and must outlive this object, as must the operands
    WeightGradient(int64_t depth, const T* a, int64_t lda, const GradientBlock* blocks, int block_count,
                   const GradientOperand<T>* operands, int operand_count, int threads)
        : depth_(depth),
          a_(a),
          lda_(lda),
          blocks_(blocks),
          block_count_(block_count),
          operands_(operands),
          operand_count_(operand_count),
          a_panels_(count_a_panels()),
          b_panels_(count_b_panels()),
          panels_of_a_(a_panels_),
          panels_of_b_(b_panels_),
          packed_a_(a_panels_ * a_panel_size),
          packed_b_(b_panels_ * gradient::width<T> * gradient::block<T>),
          sums_(in_one_block() ? 0 : a_panels_ * b_panels_ * tile_size),
          bias_(a_panels_ * span),
          tiles_(a_panels_ * b_panels_, threads) {
        list_panels();
    }

    // Called, not inlined, so that all layers share it.
    __attribute__((noinline)) void run(const Worker& worker) {
        if (depth_ <= few_rows) return add_rows(worker);
        run(worker, [](int64_t, int64_t, int64_t) { return false; });
    }

    // prepare(first, rows, place) may make the operands' rows a block at a time, one block ahead: if it returns true, all
    // workers together have set elements place … place+rows-1 of every operand's `rows`, two blocks long.
    template <class Prepare>
    void run(const Worker& worker, Prepare prepare) {
        const Range mine_a = split(a_panels_, worker), mine_b = split(b_panels_, worker);
        for (int64_t i = mine_a.begin * span; i < mine_a.end * span; ++i) bias_[i] = T(0);
        const Range own = split(a_panels_ * b_panels_, worker);
        const bool at_once = in_one_block();
        const Range places{own.begin * tile_size, at_once ? own.begin * tile_size : own.end * tile_size};
        for (int64_t i = places.begin; i < places.end; i += lanes<T>) store(sums_ + i, Vec<T>{});
        constexpr int64_t block = gradient::block<T>;
        const T* next[block];
        bool prepared = false;
        if (depth_ > 0 && (prepared = prepare(0, smaller(block, depth_), 0))) wait_for_all(worker);
        for (int64_t first = 0; first < depth_; first += block) {
            const int64_t rows = smaller(block, depth_ - first), behind = smaller(block, depth_ - first - rows);
            const int64_t place = prepared ? first / block % 2 * block : first;
            pack(mine_a, rows, [&](int64_t p, int64_t begin, int64_t end) { pack_a(p, first, begin, end); });
            pack(mine_b, rows, [&](int64_t p, int64_t begin, int64_t end) { pack_b(p, place, begin, end); });
            const int64_t next_place = prepared ? block - place : first + rows;
            if (prepared && behind > 0) prepare(first + rows, behind, next_place);
            const bool more = behind == block;
            for (int64_t k = 0; k < block; ++k) next[k] = a_ + (more ? first + rows + k : 0) * lda_;
            tiles_.reset(worker);
            wait_for_all(worker);
            tiles_.run(worker, [&](int64_t i) {
                if (at_once) return multiply_and_write(i, rows, next);
                for (int64_t k = tile_size; k < 2 * tile_size; k += 64 / sizeof(T))  // the next tile's
                    prefetch_far(reinterpret_cast<const char*>(sums_ + i * tile_size + k));
                multiply(i, rows, ahead_of(more ? i - own.begin : -1, own, mine_a, mine_b, next, next_place),
                         sums_ + i * tile_size);
            });
            wait_for_all(worker);
        }
        for (int64_t i = own.begin; i < own.end && !at_once; ++i) write(i, sums_ + i * tile_size);
        for (int64_t p = mine_a.begin; p < mine_a.end; ++p) write_bias(p);
    }

   private:
    static constexpr int64_t tile_size = gradient::height * gradient::width<T>;
    static constexpr int span = static_cast<int>((gradient::height + lanes<T> - 1) / lanes<T>) * lanes<T>;
    static constexpr int64_t a_panel_size = gradient::height * gradient::block<T> + span;
    static constexpr int64_t group_size = core_cache / 2 / (gradient::width<T> * gradient::block<T> * sizeof(T));

    struct PanelOfA {
        const GradientBlock* block;
        int64_t column, columns;  // within the block
    };
    struct PanelOfB {
        int operand;
        int64_t column, columns;
    };

    int64_t count_a_panels() const {
        int64_t panels = 0;
        for (int i = 0; i < block_count_; ++i) panels += ceil_div(blocks_[i].columns, gradient::height);
        return panels;
    }

    int64_t count_b_panels() const {
        int64_t panels = 0;
        for (int i = 0; i < operand_count_; ++i) panels += ceil_div(operands_[i].columns, gradient::width<T>);
        return panels;
    }

    void list_panels() {
        PanelOfA* a = panels_of_a_;
        for (const GradientBlock* block = blocks_; block < blocks_ + block_count_; ++block) {
            const int64_t panels = ceil_div(block->columns, gradient::height);
            for (int64_t i = 0; i < panels; ++i) {
                const Range columns = split(block->columns, i, panels);  // nearly equal heights: no tile is wasted
                *a++ = {block, columns.begin, columns.end - columns.begin};
            }
        }
        PanelOfB* b = panels_of_b_;
        for (int i = 0; i < operand_count_; ++i)
            for (int64_t column = 0; column < operands_[i].columns; column += gradient::width<T>)
                *b++ = {i, column, smaller<int64_t>(gradient::width<T>, operands_[i].columns - column)};
    }

    // Tiles in the order of work: groups of B's panels that stay in a core's cache, A's panels within, B's innermost.
    struct Pair {
        int64_t a, b;
    };
    Pair tile_at(int64_t i) const {
        const int64_t group = i / (a_panels_ * group_size), first = group * group_size;
        const int64_t members = smaller(group_size, b_panels_ - first), within = i - first * a_panels_;
        return {within / members, first + within % members};
    }

    // Few rows at a time over all panels, so that both factors are read along their rows.
    template <class Pack>
    void pack(Range panels, int64_t rows, Pack pack_strip) {
        constexpr int64_t strip = 8;
        for (int64_t k = 0; k < rows; k += strip)
            for (int64_t p = panels.begin; p < panels.end; ++p) pack_strip(p, k, smaller(k + strip, rows));
    }

    // Whole vectors are copied: what lies beyond a row's columns is overwritten by the next row.
    void pack_a(int64_t p, int64_t first, int64_t begin, int64_t end) {
        constexpr int L = lanes<T>, vectors = span / L;
        const PanelOfA& panel = panels_of_a_[p];
        const int64_t column = panel.block->first + panel.column, height = panel.columns;
        const T* from = a_ + (first + begin) * lda_ + column;
        T* to = packed_a_ + p * a_panel_size + begin * height;
        T* bias = bias_ + p * span;
        if (column + span <= lda_) {
            Vec<T> sum[vectors];
            for (int v = 0; v < vectors; ++v) sum[v] = load(bias + v * L);
            for (int64_t k = begin; k < end; ++k, from += lda_, to += height)
                for (int v = 0; v < vectors; ++v) {
                    const Vec<T> values = load(from + v * L);
                    store(to + v * L, values);
                    sum[v] += values;
                }
            for (int v = 0; v < vectors; ++v) store(bias + v * L, sum[v]);
        } else {
            for (int64_t k = begin; k < end; ++k, from += lda_, to += height)
                for (int64_t j = 0; j < height; ++j) {
                    to[j] = from[j];
                    bias[j] += to[j];
                }
        }
    }

    static int vectors_of(const PanelOfB& panel) { return static_cast<int>(ceil_div(panel.columns, lanes<T>)); }

    void pack_b(int64_t p, int64_t first, int64_t begin, int64_t end) {
        constexpr int L = lanes<T>;
        const PanelOfB& panel = panels_of_b_[p];
        const T* const* from = operands_[panel.operand].rows + first;
        const int64_t width = vectors_of(panel) * L;
        T* to = packed_b_ + p * gradient::width<T> * gradient::block<T> + begin * width;
        for (int64_t k = begin; k < end; ++k)
            for (int64_t j = 0; j < width; j += L, to += L)
                store(to, from[k] ? load_partial(from[k] + panel.column + j, panel.columns - j) : Vec<T>{});
    }

    bool meets(Pair at) const { return panels_of_a_[at.a].block->row[operands_[panels_of_b_[at.b].operand].kind] >= 0; }

    // What a worker's tile number i fetches of the rows of the next block that the worker will pack: as much as each of its
    // other tiles, a's columns first, then each operand's.
    AheadRows<T> ahead_of(int64_t i, Range own, Range mine_a, Range mine_b, const T* const* next,
                          int64_t next_place) const {
        constexpr int64_t size = sizeof(T), block = gradient::block<T>;
        const int64_t tiles = own.end - own.begin;
        AheadRows<T> result(next);
        if (i < 0 || i >= tiles || mine_a.begin == mine_a.end) return result;
        int64_t total = 0, at = 0;
        // columns begin … end-1 of `rows`: the first visit sums their bytes up, the second finds the tile's part
        const auto visit = [&](auto found) {
            const PanelOfA &front = panels_of_a_[mine_a.begin], &back = panels_of_a_[mine_a.end - 1];
            found(next, (front.block->first + front.column) * size,
                  (back.block->first + back.column + back.columns) * size);
            for (int64_t p = mine_b.begin; p < mine_b.end;) {
                const PanelOfB& first = panels_of_b_[p];
                int64_t end = 0;
                for (; p < mine_b.end && panels_of_b_[p].operand == first.operand; ++p)
                    end = panels_of_b_[p].column + panels_of_b_[p].columns;
                found(operands_[first.operand].rows + next_place, first.column * size, end * size);
            }
        };
        visit([&](const T* const*, int64_t begin, int64_t end) { total += (end - begin) * block; });
        const int64_t part = total / tiles;
        at = total * i / tiles;
        visit([&](const T* const* rows, int64_t begin, int64_t end) {
            const int64_t length = end - begin, bytes = length * block;
            if (at >= 0 && at < bytes) {
                result.row = rows + at / length;
                result.begin = begin;
                result.end = end;
                result.at = begin + at % length;
                result.step = smaller(part, bytes - at) / block;
            }
            at -= bytes;
        });
        return result;
    }

    // Few rows: each row of the gradients is made at once where it belongs, without packing and sums beside it.
    void add_rows(const Worker& worker) {
        const Range mine = split(a_panels_, worker);
        for (int64_t p = mine.begin; p < mine.end; ++p) {
            const PanelOfA& panel = panels_of_a_[p];
            T* bias = bias_ + p * span;
            for (int64_t j = 0; j < panel.columns; ++j) {
                const T* a = a_ + panel.block->first + panel.column + j;
                bias[j] = T(0);
                for (int64_t k = 0; k < depth_; ++k) bias[j] += a[k * lda_];
                for (int i = 0; i < operand_count_; ++i) {
                    const int64_t row = panel.block->row[operands_[i].kind];
                    if (row >= 0) add_row(operands_[i], a, row + panel.column + j);
                }
            }
            write_bias(p);
        }
    }

    void add_row(const GradientOperand<T>& operand, const T* a, int64_t row) const {
        T* out = operand.weight + row * operand.row_stride;
        for (int64_t i = 0; i < operand.columns; i += lanes<T>) {
            const int64_t count = operand.columns - i;
            Vec<T> sum{};
            for (int64_t k = 0; k < depth_; ++k)
                if (operand.rows[k]) sum += broadcast(a[k * lda_]) * load_partial(operand.rows[k] + i, count);
            if (operand.column_stride == 1)
                store_partial(out + i, sum, count);
            else
                for (int64_t l = 0; l < smaller<int64_t>(lanes<T>, count); ++l)
                    out[(i + l) * operand.column_stride] = sum[l];
        }
    }

    // Then no sums wait for further blocks: each tile goes where it belongs from the first-level cache.
    bool in_one_block() const { return depth_ > 0 && depth_ <= gradient::block<T>; }

    void multiply_and_write(int64_t i, int64_t rows, const T* const* any) {
        alignas(64) T sum[tile_size] = {};
        multiply(i, rows, AheadRows<T>(any), sum);
        write(i, sum);
    }

    void multiply(int64_t i, int64_t rows, const AheadRows<T>& ahead, T* sum) {
        const Pair at = tile_at(i);
        if (!meets(at)) return;
        const int64_t height = panels_of_a_[at.a].columns;
        const int vectors = vectors_of(panels_of_b_[at.b]);
        gradient::find_tile<T, true>(static_cast<int>(height), vectors)(
            1, rows, packed_a_ + at.a * a_panel_size, height, 0,
            packed_b_ + at.b * gradient::width<T> * gradient::block<T>, vectors * lanes<T>, sum, ahead);
    }

    void write(int64_t i, const T* sum) const {
        const Pair at = tile_at(i);
        if (!meets(at)) return;
        const PanelOfA& left = panels_of_a_[at.a];
        const PanelOfB& right = panels_of_b_[at.b];
        const GradientOperand<T>& operand = operands_[right.operand];
        const int64_t width = vectors_of(right) * lanes<T>;
        T* out = operand.weight + (left.block->row[operand.kind] + left.column) * operand.row_stride +
                 right.column * operand.column_stride;
        for (int64_t r = 0; r < left.columns; ++r, out += operand.row_stride, sum += width)
            if (operand.column_stride == 1)
                for (int64_t j = 0; j < width; j += lanes<T>) store_partial(out + j, load(sum + j), right.columns - j);
            else
                for (int64_t j = 0; j < right.columns; ++j) out[j * operand.column_stride] = sum[j];
    }

    void write_bias(int64_t p) {
        const PanelOfA& panel = panels_of_a_[p];
        for (int i = 0; i < operand_count_; ++i) {
            const int64_t row = panel.block->row[operands_[i].kind];
            if (!operands_[i].bias || row < 0) continue;
            T* out = operands_[i].bias + row + panel.column;
            for (int64_t j = 0; j < panel.columns; ++j) out[j] = bias_[p * span + j];
        }
    }

    int64_t depth_;
    const T* a_;
    int64_t lda_;
    const GradientBlock* blocks_;
    int block_count_;
    const GradientOperand<T>* operands_;
    int operand_count_;
    int64_t a_panels_, b_panels_;
    Buffer<PanelOfA> panels_of_a_;
    Buffer<PanelOfB> panels_of_b_;
    Buffer<T> packed_a_, packed_b_, sums_, bias_;
    Tasks tiles_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
