// Convolutions of images with few channels, as in a network's first layer: what their kernels have in common.
//
// All of them work on strips: copies in cache of the rows that some outputs meet, with the padding around them, in the order
// that the loops want. That takes a small part of the time, as an element of the input is met by all output channels.
#pragma once

#include "elementwise.h"
#include "interleave.h"
#include "product.h"

namespace tbptt {
namespace TBPTT_ISA {

TBPTT_INLINE int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }
TBPTT_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
TBPTT_INLINE int64_t clamp(int64_t n, int64_t least, int64_t most) { return n < least ? least : n > most ? most : n; }

namespace shallow {

// Elements of the padded input that a kernel reaches along an axis.
TBPTT_INLINE int64_t reach_y(const ConvolutionShape& s) { return (s.kernel_height - 1) * s.dilation_y + 1; }
TBPTT_INLINE int64_t reach_x(const ConvolutionShape& s) { return (s.kernel_width - 1) * s.dilation_x + 1; }

TBPTT_INLINE int64_t taps(const ConvolutionShape& s) { return s.kernel_height * s.kernel_width; }

TBPTT_INLINE double flops(const ConvolutionShape& s) {
    return 2.0 * static_cast<double>(s.batch * s.out_height * s.out_width) *
           static_cast<double>(s.inputs * s.outputs * taps(s));
}

// Few channels, and strips and panels that fit a core's cache.
template <class T>
bool is_shallow(const ConvolutionShape& s) {
    constexpr int64_t channels = 16, stride = 8, bytes = 1 << 20, columns = 256;
    if (s.algorithm != Algorithm::automatic && s.algorithm != Algorithm::direct) return false;
    if (s.inputs < 1 || s.outputs < 1) return false;
    if (s.groups != 1 || s.inputs >= channels || s.stride_x > stride || s.stride_y > stride) return false;
    const int64_t row = s.inputs * static_cast<int64_t>(sizeof(T));
    return s.kernel_height * (columns * s.stride_x + reach_x(s)) * row <= bytes &&
           6 * reach_y(s) * larger<int64_t>(columns, 6 * reach_x(s)) * row <= bytes &&
           s.outputs * columns * static_cast<int64_t>(sizeof(T)) <= bytes &&
           (s.inputs * taps(s) + 1) * (s.outputs + columns) * static_cast<int64_t>(sizeof(T)) <= bytes;
}

// The same with weights of which some sums are kept side by side.
template <class T>
bool has_shallow_gradient(const ConvolutionShape& s) {
    constexpr int64_t bytes = 256 << 10;
    return is_shallow<T>(s) && s.inputs * taps(s) * s.outputs * static_cast<int64_t>(sizeof(T)) <= bytes;
}

// to [count] = row[first …], zeros for what lies outside of row [size] or where it is null. The rest of the last vector is
// overwritten.
template <class T>
void copy_padded(const T* row, int64_t size, int64_t first, int64_t count, T* to) {
    const int64_t begin = row ? clamp(-first, 0, count) : count, end = clamp(size - first, begin, count);
    int64_t i = 0;
    for (; i < begin; i += lanes<T>) store(to + i, Vec<T>{});
    for (i = begin; i < end; i += lanes<T>) store(to + i, load_partial(row + first + i, end - i));
    for (i = end; i < count; i += lanes<T>) store(to + i, Vec<T>{});
}

}  // namespace shallow
}  // namespace TBPTT_ISA
}  // namespace tbptt
