// What batch and layer normalization share: sums over runs of elements in double, and means that lose nothing in T.
#pragma once

#include "../api.h"
#include "reduce.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr double cost_of_normalizing = 16;  // one element, in units of `threads_for`
constexpr int sums_together = 4;            // vectors that are summed side by side hide the latency of an addition

// A sum over one run of elements in vectors of T: body(index, elements, which of the sums).
template <class T, class Body>
TBPTT_INLINE void walk(Range run, Body body) {
    constexpr int L = lanes<T>;
    int64_t i = run.begin;
    for (; i + sums_together * L <= run.end; i += sums_together * L) {
#pragma GCC unroll 4
        for (int k = 0; k < sums_together; ++k) body(i + k * L, static_cast<int64_t>(L), k);
    }
    for (; i + L <= run.end; i += L) body(i, static_cast<int64_t>(L), 0);
    if (i < run.end) body(i, run.end - i, 0);
}

// Calls body(index, elements) for vectors of T that cover 0 … count-1; the last may overlap the one before it.
template <class T, class Body>
TBPTT_INLINE void cover(int64_t count, Body body) {
    constexpr int64_t L = lanes<T>;
    if (count < L) return body(int64_t{0}, count);
    int64_t i = 0;
    for (; i + L <= count; i += L) body(i, L);
    if (i < count) body(count - L, L);
}

template <class T>
struct Sum {
    Vec<T> part[sums_together]{};
    TBPTT_INLINE double total() const {
        return static_cast<double>(sum_lanes<T>((part[0] + part[1]) + (part[2] + part[3])));
    }
};

// Weights, where there are some: lanes beyond `count` are never stored.
template <class T>
TBPTT_INLINE Vec<T> load_or(T otherwise, const T* from, int64_t index, int64_t count) {
    return from ? load_partial(from + index, count) : broadcast(otherwise);
}

template <class T>
TBPTT_INLINE double weight_of(const T* weights, int64_t index) {
    return weights ? static_cast<double>(weights[index]) : 1.0;
}

// A mean as two numbers of T: x - high is exact where it matters, and - low then restores what rounding took.
template <class T>
struct Mean {
    T high, low;
};

template <class T>
TBPTT_INLINE Mean<T> split_mean(double mean) {
    const T high = static_cast<T>(mean);
    const double rest = mean - static_cast<double>(high);
    return {high, rest == rest ? static_cast<T>(rest) : 0};  // an infinite mean has no rest
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
