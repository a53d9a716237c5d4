// Weight gradients: dW = dgatesᵀ·[x | h'], one product over all T·B rows, with the bias gradients on the way.
//
// Both factors have the long dimension (rows) outermost, so blocks of rows are packed: dgates in panels of `height`
// columns, x and h' in panels of two SIMD columns. A dgates panel stays in the first-level cache while the panels of
// x and h' stream past. Blocks of rows are added in their order: the sum does not depend on the number of threads.
#pragma once

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

// c [height][vectors][lanes] (Accumulate) += Σ_k a[k][height] · b[k][vectors][lanes]
template <class T, bool Accumulate>
void tile(int64_t depth, const T* __restrict a, const T* __restrict b, T* __restrict c) {
    constexpr int L = lanes<T>;
    Vec<T> sum[height][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < height; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[r][v] = Accumulate ? load(c + (r * vectors + v) * L) : Vec<T>{};
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; ++k, a += height, b += vectors * L) {
        const Vec<T> first = load(b), second = load(b + L);
        prefetch<vectors>(b + 2 * panel_ahead * vectors * L);
#pragma GCC unroll 16
        for (int r = 0; r < height; ++r) {
            const Vec<T> factor = broadcast(a[r]);
            sum[r][0] += factor * first;
            sum[r][1] += factor * second;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < height; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) store(c + (r * vectors + v) * L, sum[r][v]);
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
          sums_(a_panels_ * b_panels_ * tile_size),
          bias_(a_panels_ * span),
          tiles_(a_panels_ * b_panels_, threads) {
        list_panels();
    }

    void run(const Worker& worker) {
        run(worker, [](int64_t, int64_t) { return false; });
    }

    // prepare(first, rows) may make the operands' rows a block at a time: if it returns true, all workers have set the
    // elements 0 … rows-1 of every operand's `rows` together.
    template <class Prepare>
    void run(const Worker& worker, Prepare prepare) {
        const Range mine_a = split(a_panels_, worker), mine_b = split(b_panels_, worker);
        for (int64_t i = mine_a.begin * span; i < mine_a.end * span; ++i) bias_[i] = T(0);
        for (int64_t first = 0; first < depth_; first += gradient::block<T>) {
            const int64_t rows = smaller(gradient::block<T>, depth_ - first);
            const bool prepared = prepare(first, rows);
            if (prepared) wait_for_all(worker);
            const int64_t offset = prepared ? 0 : first;
            pack(mine_a, rows, [&](int64_t p, int64_t begin, int64_t end) { pack_a(p, first, begin, end); });
            pack(mine_b, rows, [&](int64_t p, int64_t begin, int64_t end) { pack_b(p, offset, begin, end); });
            tiles_.reset(worker);
            wait_for_all(worker);
            tiles_.run(worker, [&](int64_t i) { multiply(i, rows, first == 0); });
            wait_for_all(worker);
        }
        const Range tiles = split(a_panels_ * b_panels_, worker);
        for (int64_t i = tiles.begin; i < tiles.end; ++i) write(i);
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
        for (const GradientBlock* block = blocks_; block < blocks_ + block_count_; ++block)
            for (int64_t column = 0; column < block->columns; column += gradient::height)
                *a++ = {block, column, smaller<int64_t>(gradient::height, block->columns - column)};
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

    // Whole vectors are copied: what lies beyond a row's `height` columns is overwritten by the next row.
    void pack_a(int64_t p, int64_t first, int64_t begin, int64_t end) {
        constexpr int H = gradient::height, L = lanes<T>, vectors = span / L;
        const PanelOfA& panel = panels_of_a_[p];
        const int64_t column = panel.block->first + panel.column;
        const T* from = a_ + (first + begin) * lda_ + column;
        T* to = packed_a_ + p * a_panel_size + begin * H;
        T* bias = bias_ + p * span;
        if (column + span <= lda_ && panel.columns == H) {
            Vec<T> sum[vectors];
            for (int v = 0; v < vectors; ++v) sum[v] = load(bias + v * L);
            for (int64_t k = begin; k < end; ++k, from += lda_, to += H)
                for (int v = 0; v < vectors; ++v) {
                    const Vec<T> values = load(from + v * L);
                    store(to + v * L, values);
                    sum[v] += values;
                }
            for (int v = 0; v < vectors; ++v) store(bias + v * L, sum[v]);
        } else {
            for (int64_t k = begin; k < end; ++k, from += lda_, to += H)
                for (int j = 0; j < H; ++j) {
                    to[j] = j < panel.columns ? from[j] : T(0);
                    bias[j] += to[j];
                }
        }
    }

    void pack_b(int64_t p, int64_t first, int64_t begin, int64_t end) {
        constexpr int W = gradient::width<T>;
        const PanelOfB& panel = panels_of_b_[p];
        const T* const* from = operands_[panel.operand].rows + first;
        T* to = packed_b_ + p * W * gradient::block<T> + begin * W;
        for (int64_t k = begin; k < end; ++k, to += W) {
            const T* row = from[k] ? from[k] + panel.column : nullptr;
            if (row && panel.columns == W)
                for (int j = 0; j < W; ++j) to[j] = row[j];
            else
                for (int j = 0; j < W; ++j) to[j] = row && j < panel.columns ? row[j] : T(0);
        }
    }

    bool meets(Pair at) const { return panels_of_a_[at.a].block->row[operands_[panels_of_b_[at.b].operand].kind] >= 0; }

    void multiply(int64_t i, int64_t rows, bool first) {
        const Pair at = tile_at(i);
        if (!meets(at)) return;
        T* sum = sums_ + i * tile_size;
        for (int64_t next = tile_size; next < 2 * tile_size; next += 64 / sizeof(T))
            prefetch_far(reinterpret_cast<const char*>(sum + next));
        const T* left = packed_a_ + at.a * a_panel_size;
        const T* right = packed_b_ + at.b * gradient::width<T> * gradient::block<T>;
        first ? gradient::tile<T, false>(rows, left, right, sum) : gradient::tile<T, true>(rows, left, right, sum);
    }

    void write(int64_t i) {
        const Pair at = tile_at(i);
        if (!meets(at)) return;
        const PanelOfA& left = panels_of_a_[at.a];
        const PanelOfB& right = panels_of_b_[at.b];
        const GradientOperand<T>& operand = operands_[right.operand];
        const T* sum = sums_ + i * tile_size;
        T* out = operand.weight + (left.block->row[operand.kind] + left.column) * operand.row_stride +
                 right.column * operand.column_stride;
        for (int64_t r = 0; r < left.columns; ++r, out += operand.row_stride, sum += gradient::width<T>)
            for (int64_t j = 0; j < right.columns; ++j) out[j * operand.column_stride] = depth_ > 0 ? sum[j] : T(0);
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
