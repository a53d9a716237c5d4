// The weights' side of Winograd's filtering.
#pragma once

#include "winograd_tiles.h"
#include "winograd_transform.h"

namespace tbptt {
namespace TBPTT_ISA {

// The kernels of some channels on both sides, transformed.
template <class T, int M>
class WinogradWeights {
   public:
    static constexpr int reach = M + 2, points = reach * reach;

    WinogradWeights(const Correlation<T>& c, const WinogradTiles<T, M>& tiles) : c_(c) {
        for (int i = 0; i < 9; ++i) element_[i] = tiles.element(i / 3, i % 3);
    }

    // to [point][depth][vectors][lanes] = the kernels from the group's channels `depth` to those from `column` on.
    void transform(int64_t group, const Range& depth, int64_t column, int64_t vectors, T* to) const {
        constexpr int L = lanes<T>;
        const int64_t width = vectors * L, stride = (depth.end - depth.begin) * width;
        alignas(64) T kernels[L * 9 * L];  // [depth][element][lane]
        for (int64_t v = 0; v < vectors; ++v)
            for (int64_t d = depth.begin; d < depth.end; d += L) {
                const int64_t count = smaller<int64_t>(L, depth.end - d);
                gather(group, d, count, column + v * L, kernels);
                T* out = to + (d - depth.begin) * width + v * L;
                for (int64_t k = 0; k < count; ++k) transform_one(kernels + k * 9 * L, out + k * width, stride);
            }
    }

   private:
    // Zeros beyond the last column. A column's kernels lie together in a convolution, not in its transpose.
    void gather(int64_t group, int64_t d, int64_t count, int64_t column, T* to) const {
        constexpr int L = lanes<T>;
        const int64_t columns = smaller<int64_t>(L, c_.columns - column), size = count * 9;
        const T* from = c_.w + group * c_.w_group + d * c_.w_depth + column * c_.w_column;
        if (c_.w_depth == 9) {
            for_columns<T>(from, c_.w_column, size, columns,
                           [&](int64_t e, Vec<T> values) { store(to + e * L, values); });
            return;
        }
        if (columns < L) fill<T>(to, size * L, 0);
        for (int64_t k = 0; k < count; ++k, from += c_.w_depth, to += 9 * L)
            for (int64_t lane = 0; lane < columns; ++lane)
                for (int e = 0; e < 9; ++e) to[e * L + lane] = from[lane * c_.w_column + e];
    }

    void transform_one(const T* kernel, T* to, int64_t stride) const {
        using Transform = Winograd<T, M>;
        Vec<T> half[3][reach], out[reach];
#pragma GCC unroll 4
        for (int j = 0; j < 3; ++j) {
            Vec<T> column[3];
#pragma GCC unroll 4
            for (int i = 0; i < 3; ++i) column[i] = load(kernel + element_[i * 3 + j] * lanes<T>);
            Transform::weights(column, half[j]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < reach; ++i) {
            const Vec<T> row[3] = {half[0][i], half[1][i], half[2][i]};
            Transform::weights(row, out);
#pragma GCC unroll 8
            for (int j = 0; j < reach; ++j) store(to + (i * reach + j) * stride, out[j]);
        }
    }

    const Correlation<T>& c_;
    int64_t element_[9];
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
