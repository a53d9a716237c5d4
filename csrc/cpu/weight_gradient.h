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
    T* weight;  // out = [·, columns]
    T* bias;    // out = [·] or null
};

constexpr int max_operands = 2;

// Columns of dgates that share their operands: `row[i]` is the first row of operand i's gradient that they fill, or -1.
struct GradientBlock {
    int64_t first, columns;
    int64_t row[max_operands];
};

template <class T>
class WeightGradient {
   public:
    // a [depth][lda]; the blocks cover the columns in order and must outlive this object, as must the operands
    WeightGradient(int64_t depth, const T* a, int64_t lda, const GradientBlock* blocks, int block_count,
                   const GradientOperand<T>* operands, int operand_count)
        : depth_(depth),
          a_(a),
          lda_(lda),
          blocks_(blocks),
          block_count_(block_count),
          operands_(operands),
          operand_count_(operand_count),
          a_panels_(count_a_panels()),
          b_panels_(count_b_panels()),
          packed_a_(a_panels_ * gradient::height * gradient::block<T>),
          packed_b_(b_panels_ * gradient::width<T> * gradient::block<T>),
          sums_(a_panels_ * b_panels_ * tile_size),
          bias_(a_panels_ * gradient::height) {}

    void run(const Worker& worker) {
        const Range mine_a = split(a_panels_, worker), mine_b = split(b_panels_, worker);
        const Range tiles = split(a_panels_ * b_panels_, worker);
        for (int64_t i = mine_a.begin * gradient::height; i < mine_a.end * gradient::height; ++i) bias_[i] = T(0);
        for (int64_t first = 0; first < depth_; first += gradient::block<T>) {
            const int64_t rows = smaller(gradient::block<T>, depth_ - first);
            pack_a(mine_a, first, rows);
            pack_b(mine_b, first, rows);
            wait_for_all(worker);
            for (int64_t i = tiles.begin; i < tiles.end; ++i) multiply(i / b_panels_, i % b_panels_, rows, first == 0);
            wait_for_all(worker);
        }
        for (int64_t i = tiles.begin; i < tiles.end; ++i) write(i / b_panels_, i % b_panels_);
        for (int64_t p = mine_a.begin; p < mine_a.end; ++p) write_bias(p);
    }

   private:
    static constexpr int64_t tile_size = gradient::height * gradient::width<T>;

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

    PanelOfA panel_of_a(int64_t p) const {
        const GradientBlock* block = blocks_;
        for (int64_t panels; p >= (panels = ceil_div(block->columns, gradient::height)); ++block) p -= panels;
        const int64_t column = p * gradient::height;
        return {block, column, smaller<int64_t>(gradient::height, block->columns - column)};
    }

    PanelOfB panel_of_b(int64_t p) const {
        int operand = 0;
        for (int64_t panels; p >= (panels = ceil_div(operands_[operand].columns, gradient::width<T>)); ++operand)
            p -= panels;
        const int64_t column = p * gradient::width<T>;
        return {operand, column, smaller<int64_t>(gradient::width<T>, operands_[operand].columns - column)};
    }

    // Few rows at a time over all panels, so that dgates is read along its rows.
    void pack_a(Range panels, int64_t first, int64_t rows) {
        constexpr int H = gradient::height, strip = 8;
        for (int64_t k0 = 0; k0 < rows; k0 += strip) {
            const int64_t k1 = smaller<int64_t>(k0 + strip, rows);
            for (int64_t p = panels.begin; p < panels.end; ++p) {
                const PanelOfA panel = panel_of_a(p);
                const T* from = a_ + (first + k0) * lda_ + panel.block->first + panel.column;
                T* to = packed_a_ + p * H * gradient::block<T> + k0 * H;
                T* bias = bias_ + p * H;
                if (panel.columns == H) {
                    T sum[H];
                    for (int j = 0; j < H; ++j) sum[j] = bias[j];
                    for (int64_t k = k0; k < k1; ++k, from += lda_, to += H)
                        for (int j = 0; j < H; ++j) {
                            to[j] = from[j];
                            sum[j] += from[j];
                        }
                    for (int j = 0; j < H; ++j) bias[j] = sum[j];
                } else {
                    for (int64_t k = k0; k < k1; ++k, from += lda_, to += H)
                        for (int j = 0; j < H; ++j) {
                            to[j] = j < panel.columns ? from[j] : T(0);
                            bias[j] += to[j];
                        }
                }
            }
        }
    }

    void pack_b(Range panels, int64_t first, int64_t rows) {
        constexpr int W = gradient::width<T>;
        for (int64_t p = panels.begin; p < panels.end; ++p) {
            const PanelOfB panel = panel_of_b(p);
            const T* const* from = operands_[panel.operand].rows + first;
            T* to = packed_b_ + p * W * gradient::block<T>;
            for (int64_t k = 0; k < rows; ++k, to += W) {
                const T* row = from[k] ? from[k] + panel.column : nullptr;
                if (row && panel.columns == W)
                    for (int j = 0; j < W; ++j) to[j] = row[j];
                else
                    for (int j = 0; j < W; ++j) to[j] = row && j < panel.columns ? row[j] : T(0);
            }
        }
    }

    bool meets(int64_t a, int64_t b) const { return panel_of_a(a).block->row[panel_of_b(b).operand] >= 0; }

    void multiply(int64_t a, int64_t b, int64_t rows, bool first) {
        const char* next = reinterpret_cast<const char*>(sums_ + (a * b_panels_ + b + 1) * tile_size);
        for (std::size_t bytes = 0; bytes < tile_size * sizeof(T); bytes += 64) prefetch_far(next + bytes);
        if (!meets(a, b)) return;
        const T* left = packed_a_ + a * gradient::height * gradient::block<T>;
        const T* right = packed_b_ + b * gradient::width<T> * gradient::block<T>;
        T* sum = sums_ + (a * b_panels_ + b) * tile_size;
        first ? gradient::tile<T, false>(rows, left, right, sum) : gradient::tile<T, true>(rows, left, right, sum);
    }

    void write(int64_t a, int64_t b) {
        if (!meets(a, b)) return;
        const PanelOfA left = panel_of_a(a);
        const PanelOfB right = panel_of_b(b);
        const GradientOperand<T>& operand = operands_[right.operand];
        const T* sum = sums_ + (a * b_panels_ + b) * tile_size;
        T* out = operand.weight + (left.block->row[right.operand] + left.column) * operand.columns + right.column;
        for (int64_t r = 0; r < left.columns; ++r, out += operand.columns, sum += gradient::width<T>)
            for (int64_t j = 0; j < right.columns; ++j) out[j] = depth_ > 0 ? sum[j] : T(0);
    }

    void write_bias(int64_t p) {
        const PanelOfA panel = panel_of_a(p);
        for (int i = 0; i < operand_count_; ++i) {
            if (!operands_[i].bias || panel.block->row[i] < 0) continue;
            T* out = operands_[i].bias + panel.block->row[i] + panel.column;
            for (int64_t j = 0; j < panel.columns; ++j) out[j] = bias_[p * gradient::height + j];
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
    Buffer<T> packed_a_, packed_b_, sums_, bias_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
