// The register tiles of a depthwise convolution: a few rows and columns of one image, a vector of channels or of pixels
// each, against what they meet in the other image.
//
// Both directions and both results are one walk: a vector of the source is loaded and multiplied with all that it meets.
// Either the target is summed up in registers, or the kernel's elements are.
#pragma once

#include <type_traits>

#include "vec.h"

namespace tbptt {
namespace TBPTT_ISA {

// What meets what along one direction, for the compiler: n steps of a walk over the target read `window(n)` positions of
// the source and make `outputs(n)`. Window position `in` meets output `out` at this element of the kernel, if it has it.
template <int Kernel, int Stride>
struct ToSmall {
    static constexpr int kernel = Kernel;
    static constexpr int outputs(int n) { return n; }
    static constexpr int window(int n) { return Stride * (n - 1) + Kernel; }
    static constexpr int element(int in, int out) { return in - Stride * out; }
};

// The transpose: the window begins `lag` positions before the first step's own.
template <int Kernel, int Stride>
struct ToBig {
    static constexpr int kernel = Kernel;
    static constexpr int lag = (Kernel - 1) / Stride;
    static constexpr int outputs(int n) { return Stride * n; }
    static constexpr int window(int n) { return n + lag; }
    static constexpr int element(int in, int out) { return out + Stride * (lag - in); }
};

// A rectangle of an image: row i and column j begin at first + row·i + column[j]. Those whose bits are clear do not exist.
template <class T>
struct Patch {
    T* image;
    int64_t first, row;
    const int64_t* column;
    unsigned rows, columns;
};

constexpr unsigned all_bits(int count) { return (1u << count) - 1; }

// How much of a tile lies in the images: everything, all that it makes or is summed over, or less.
enum class Fit { whole, clipped, ragged };
template <Fit F>
using FitConstant = std::integral_constant<Fit, F>;

// visit(i, j, element, v) for every vector v of the window that meets the output (i, j).
template <class Meet, int Rows, int Columns, Fit F, bool Full, class T, class Visit>
TBPTT_INLINE void visit_window(const Patch<const T>& window, int64_t lane, int64_t count, Visit visit) {
    constexpr bool whole = F == Fit::whole;
    constexpr int K = Meet::kernel, height = Meet::window(Rows), width = Meet::window(Columns);
    constexpr int out_height = Meet::outputs(Rows), out_width = Meet::outputs(Columns);
    const T* from = window.image + window.first + lane;
#pragma GCC unroll 32
    for (int x = 0; x < width; ++x) {
        if (!whole && !(window.columns >> x & 1)) continue;
#pragma GCC unroll 32
        for (int y = 0; y < height; ++y) {
            if (!whole && !(window.rows >> y & 1)) continue;
            const Vec<T> v = load_lanes<Full>(from + window.column[x] + y * window.row, count);
#pragma GCC unroll 32
            for (int i = 0; i < out_height; ++i) {
                const int ky = Meet::element(y, i);
                if (ky < 0 || ky >= K) continue;
#pragma GCC unroll 32
                for (int j = 0; j < out_width; ++j) {
                    const int kx = Meet::element(x, j);
                    if (kx >= 0 && kx < K) visit(i, j, ky * K + kx, v);
                }
            }
        }
    }
}

// visit(i, j, pointer) for the elements of a patch that exist.
template <int Rows, int Columns, Fit F, class T, class Visit>
TBPTT_INLINE void visit_patch(const Patch<T>& patch, int64_t lane, Visit visit) {
    T* at = patch.image + patch.first + lane;
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
        if (F != Fit::whole && !(patch.rows >> i & 1)) continue;
#pragma GCC unroll 32
        for (int j = 0; j < Columns; ++j)
            if (F == Fit::whole || patch.columns >> j & 1) visit(i, j, at + i * patch.row + patch.column[j]);
    }
}

// target = start + Σ w · window for one vector of lanes, summed over windows that lie `plane` apart; weight(index) gives the
// vectors w, window after window.
template <class Meet, int Rows, int Columns, Fit F, bool Full, class T, class Weight>
TBPTT_INLINE void sum_tile(Patch<const T> window, int64_t depth, int64_t plane, const Patch<T>& target, int64_t lane,
                           int64_t count, Vec<T> start, Weight weight) {
    constexpr int R = Meet::outputs(Rows), C = Meet::outputs(Columns), elements = Meet::kernel * Meet::kernel;
    Vec<T> w[elements], sum[R][C];
#pragma GCC unroll 32
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 32
        for (int j = 0; j < C; ++j) sum[i][j] = start;
#pragma GCC unroll 1
    for (int64_t d = 0; d < depth; ++d, window.first += plane) {
#pragma GCC unroll 32
        for (int k = 0; k < elements; ++k) w[k] = weight(d * elements + k);
        visit_window<Meet, Rows, Columns, F, Full>(
            window, lane, count, [&](int i, int j, int element, Vec<T> v) { sum[i][j] += w[element] * v; });
    }
    visit_patch<R, C, F>(target, lane, [&](int i, int j, T* to) { store_lanes<Full>(to, sum[i][j], count); });
}

// sums [elements] += Σ target · window, each a vector, for one vector of lanes. With a bias, it += Σ target. What does not
// exist of the target is not multiplied: infinities of the window must not get into other sums.
template <class Meet, int Rows, int Columns, Fit F, bool Full, class T>
TBPTT_INLINE void gradient_tile(const Patch<const T>& window, const Patch<const T>& target, int64_t lane, int64_t count,
                                T* sums, T* bias) {
    constexpr int R = Meet::outputs(Rows), C = Meet::outputs(Columns), elements = Meet::kernel * Meet::kernel;
    Vec<T> g[R][C], sum[elements], total{};
#pragma GCC unroll 32
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 32
        for (int j = 0; j < C; ++j) g[i][j] = Vec<T>{};
    visit_patch<R, C, F>(target, lane, [&](int i, int j, const T* from) {
        g[i][j] = load_lanes<Full>(from, count);
        total += g[i][j];
    });
    if (bias) store(bias, load(bias) + total);
#pragma GCC unroll 32
    for (int k = 0; k < elements; ++k) sum[k] = load(sums + k * lanes<T>);
    visit_window<Meet, Rows, Columns, F, Full>(window, lane, count, [&](int i, int j, int element, Vec<T> v) {
        if (F != Fit::ragged || (target.rows >> i & 1 && target.columns >> j & 1)) sum[element] += g[i][j] * v;
    });
#pragma GCC unroll 32
    for (int k = 0; k < elements; ++k) store(sums + k * lanes<T>, sum[k]);
}

// The general case is one column of a few rows, and a list of what it meets: row i meets the source at
// first + offset + row·i and an element of the kernel, if its bit is set.
struct Meeting {
    int64_t offset, element;
    unsigned rows;
};

struct Meetings {
    const Meeting* list;
    int64_t count;
};

constexpr int column_rows = 8;

// visit(i, v) for the rows of a column that have the meeting and, by the bits of `rows`, exist.
template <Fit F, bool Full, class T, class Visit>
TBPTT_INLINE void visit_column(const T* from, int64_t row, const Meeting& m, unsigned rows, int64_t count,
                               Visit visit) {
    from += m.offset;
    rows &= m.rows;
#pragma GCC unroll 32
    for (int i = 0; i < column_rows; ++i)
        if (F == Fit::whole || rows >> i & 1) visit(i, load_lanes<Full>(from + i * row, count));
}

// As `sum_tile`; only `first` and `row` of the source are looked at.
template <Fit F, bool Full, class T, class Weight>
TBPTT_INLINE void sum_column(const Patch<const T>& source, Meetings meetings, const Patch<T>& target, int64_t lane,
                             int64_t count, Vec<T> start, Weight weight) {
    const T* from = source.image + source.first + lane;
    Vec<T> sum[column_rows];
#pragma GCC unroll 32
    for (int i = 0; i < column_rows; ++i) sum[i] = start;
#pragma GCC unroll 1
    for (const Meeting* m = meetings.list; m < meetings.list + meetings.count; ++m) {
        const Vec<T> w = weight(m->element);
        visit_column<F, Full>(from, source.row, *m, target.rows, count, [&](int i, Vec<T> v) { sum[i] += w * v; });
    }
    visit_patch<column_rows, 1, F>(target, lane, [&](int i, int, T* to) { store_lanes<Full>(to, sum[i], count); });
}

// As `gradient_tile`, with a bias.
template <Fit F, bool Full, class T>
TBPTT_INLINE void gradient_column(const Patch<const T>& source, Meetings meetings, const Patch<const T>& target,
                                  int64_t lane, int64_t count, T* sums, T* bias) {
    const T* from = source.image + source.first + lane;
    Vec<T> g[column_rows], total{};
#pragma GCC unroll 32
    for (int i = 0; i < column_rows; ++i) g[i] = Vec<T>{};
    visit_patch<column_rows, 1, F>(target, lane, [&](int i, int, const T* at) {
        g[i] = load_lanes<Full>(at, count);
        total += g[i];
    });
    store(bias, load(bias) + total);
#pragma GCC unroll 1
    for (const Meeting* m = meetings.list; m < meetings.list + meetings.count; ++m) {
        T* to = sums + m->element * lanes<T>;
        Vec<T> sum = load(to);
        visit_column<F, Full>(from, source.row, *m, target.rows, count, [&](int i, Vec<T> v) { sum += g[i] * v; });
        store(to, sum);
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
