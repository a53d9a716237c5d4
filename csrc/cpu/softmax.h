// Softmax over rows, forward and backward.
#pragma once

#include "../api.h"
#include "reduce.h"
#include "vector_math.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr double cost_of_a_class = 20;  // its exponential and what is around it, in units of `threads_for`

template <class T>
TBPTT_INLINE Vec<T> larger_of(Vec<T> a, Vec<T> b) {
    return a > b ? a : b;
}

template <class T>
TBPTT_INLINE T row_maximum(const T* row, int64_t count) {
    constexpr int L = lanes<T>;
    T largest = row[0];
    if (count >= L) {
        Vec<T> best = load(row + count - L);  // the last vector may overlap the others
        for (int64_t i = 0; i + L <= count; i += L) best = larger_of<T>(load(row + i), best);
        T lane[L];
        store(lane, best);
#pragma GCC unroll 8
        for (int half = L / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
        return lane[0];
    }
    for (int64_t i = 1; i < count; ++i) largest = row[i] > largest ? row[i] : largest;
    return largest;
}

// to = exp(row - shift); returns the sum
template <class T>
TBPTT_INLINE T exponentials(const T* row, int64_t count, T shift, T* to) {
    constexpr int L = lanes<T>;
    Vec<T> sums{};
    int64_t i = 0;
    for (; i + L <= count; i += L) {
        const Vec<T> e = vec_exp<T>(load(row + i) - shift);
        store(to + i, e);
        sums += e;
    }
    T sum = sum_lanes<T>(sums);
    if (i < count) {
        const Vec<T> e = vec_exp<T>(load_partial(row + i, count - i) - shift);
        store_partial(to + i, e, count - i);
        for (int64_t j = 0; j < count - i; ++j) sum += e[j];
    }
    return sum;
}

// Subtracting the maximum leaves the result as it is and every exponential at most 1.
template <class T>
void softmax_forward(const SoftmaxForward<T>& p) {
    const int64_t columns = p.columns;
    run_parallel(threads_for(cost_of_a_class * static_cast<double>(p.rows * columns)), [&](const Worker& worker) {
        const Range mine = split(p.rows, worker);
        for (int64_t row = mine.begin; row < mine.end; ++row) {
            const T* x = p.x + row * columns;
            T* y = p.y + row * columns;
            const T sum = exponentials(x, columns, row_maximum(x, columns), y);
            for (int64_t i = 0; i < columns; i += lanes<T>)
                store_partial(y + i, load_partial(y + i, columns - i) / sum, columns - i);
        }
    });
}

// grad_x = y·(grad_y - Σ y·grad_y); the sum, in which large terms may cancel, is in double.
template <class T>
void softmax_backward(const SoftmaxBackward<T>& p) {
    const int64_t columns = p.columns;
    run_parallel(threads_for(8.0 * static_cast<double>(p.rows * columns)), [&](const Worker& worker) {
        const Range mine = split(p.rows, worker);
        for (int64_t row = mine.begin; row < mine.end; ++row) {
            const T *y = p.y + row * columns, *grad_y = p.grad_y + row * columns;
            T* grad_x = p.grad_x + row * columns;
            Vec<double> sums{};
            for (int64_t i = 0; i < columns; i += lanes<double>)
                sums += load_double(y + i, columns - i) * load_double(grad_y + i, columns - i);
            const Vec<double> sum = broadcast(sum_lanes<double>(sums));
            for (int64_t i = 0; i < columns; i += lanes<double>)
                store_double(grad_x + i, load_double(y + i, columns - i) * (load_double(grad_y + i, columns - i) - sum),
                             columns - i);
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
