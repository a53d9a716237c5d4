// Where Winograd's filtering applies and pays, and how it cuts images into tiles.
#pragma once

#include "strip.h"

namespace tbptt {
namespace TBPTT_ISA {

// Whether the taps are a square of 3×3 neighbours and neither side is strided.
template <class T>
bool suits_winograd(const Correlation<T>& c) {
    if (c.tap_count != 9 || c.step_y != 1 || c.step_x != 1 || c.grid.stride_y != 1 || c.grid.stride_x != 1)
        return false;
    int64_t top = c.taps[0].dy, bottom = top, left = c.taps[0].dx, right = left;
    for (int64_t t = 1; t < c.tap_count; ++t) {
        top = smaller(top, c.taps[t].dy), bottom = larger(bottom, c.taps[t].dy);
        left = smaller(left, c.taps[t].dx), right = larger(right, c.taps[t].dx);
    }
    return bottom - top == 2 && right - left == 2;
}

// Tiles whose transforms fit a core's cache beside those of the weights.
template <class T>
int64_t winograd_block(int64_t tile) {
    constexpr int64_t bytes = 48 * 36 * sizeof(float);
    return bytes / ((tile + 2) * (tile + 2) * static_cast<int64_t>(sizeof(T)));
}

// The tile to use, 2 or 4; 0 for the direct way. The estimate counts multiplications, in which the measured cost of the
// transforms of pixels and of weights is expressed; automatic choice leaves float64, asked for its accuracy, alone.
template <class T>
int winograd_tile(const Correlation<T>& c) {
    constexpr double of_products = 1.25, of_pixels = 16, of_weights = 16, of_shared_weights = 45, least_gain = 1.15;
    const bool nothing = c.depth < 1 || c.columns < 1 || c.grid.positions() < 1;
    if (c.algorithm == Algorithm::direct || nothing) return 0;
    if (c.algorithm == Algorithm::winograd_2x2) return 2;
    if (c.algorithm == Algorithm::winograd_4x4) return 4;
    const bool asked = c.algorithm == Algorithm::winograd;
    if (!asked && (sizeof(T) == 8 || !suits_winograd(c))) return 0;
    const auto depth = static_cast<double>(c.depth), columns = static_cast<double>(c.columns);
    const auto cost = [&](int64_t tile) {
        const int64_t count = c.grid.batch * ceil_div(c.grid.height, tile) * ceil_div(c.grid.width, tile);
        return static_cast<double>((tile + 2) * (tile + 2)) *
               (static_cast<double>(count) * (of_products * depth * columns + of_pixels * (depth + columns)) +
                (count > 2 * winograd_block<T>(tile) ? of_shared_weights : of_weights) * depth * columns);
    };
    const double small = cost(2), large = cost(4),
                 direct = 9 * static_cast<double>(c.grid.positions()) * depth * columns;
    if (!asked && (small < large ? small : large) * least_gain > direct) return 0;
    return small < large ? 2 : 4;
}

// The tiles that cover the target, numbered along rows, rows along images.
template <class T, int M>
class WinogradTiles {
   public:
    static constexpr int reach = M + 2;

    explicit WinogradTiles(const Correlation<T>& c)
        : c_(c), rows_(ceil_div(c.grid.height, M)), columns_(ceil_div(c.grid.width, M)) {
        top_ = c.taps[0].dy, left_ = c.taps[0].dx;
        for (int64_t t = 1; t < c.tap_count; ++t) {
            top_ = smaller(top_, c.taps[t].dy);
            left_ = smaller(left_, c.taps[t].dx);
        }
    }

    int64_t count() const { return c_.grid.batch * rows_ * columns_; }

    // Nearly equal blocks of about `wanted` tiles, whole rows of tiles where these are short.
    int64_t choose_block(int64_t wanted) const {
        const int64_t unit = columns_ <= wanted ? columns_ : 1, units = ceil_div(count(), unit);
        const int64_t blocks = ceil_div(count(), larger(unit, wanted / unit * unit));
        return larger<int64_t>(1, ceil_div(units, larger<int64_t>(1, blocks))) * unit;
    }

    // Calls body(index of the first tile, number of tiles, area of their outputs, not clipped) for rows of at most `most`
    // neighbouring tiles.
    template <class Body>
    void for_rows(int64_t first, int64_t count, int64_t most, Body body) const {
        for (int64_t done = 0; done < count;) {
            const int64_t tile = first + done, row = tile / columns_, column = tile % columns_;
            const int64_t length = smaller(smaller(count - done, most), columns_ - column);
            const int64_t top = row % rows_ * M, left = column * M;
            body(done, length, Area{row / rows_, top, left, top + M, left + length * M});
            done += length;
        }
    }

    Area inputs(const Area& outputs) const {
        return {outputs.n, outputs.top + top_, outputs.left + left_, outputs.bottom + top_ + 2,
                outputs.right + left_ + 2};
    }

    // Where the element of the kernel at (i, j) of the 3×3 lies.
    int64_t element(int64_t i, int64_t j) const {
        for (int64_t t = 0; t < c_.tap_count; ++t)
            if (c_.taps[t].dy - top_ == i && c_.taps[t].dx - left_ == j) return c_.taps[t].element;
        return 0;
    }

   private:
    const Correlation<T>& c_;
    int64_t rows_, columns_, top_, left_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
