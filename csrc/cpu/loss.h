// Losses with their gradients in one pass. Sums over rows are in double and in the order of the rows, so that neither
// the number of threads nor the size of the batch costs accuracy.
#pragma once

#include "../api.h"
#include "reduce.h"
#include "vector_math.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

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

// Subtracting the maximum leaves the softmax as it is and every exponential at most 1. A NaN in the row reaches all of
// it: through the maximum or through the sum.
template <class T>
TBPTT_INLINE double cross_entropy_row(const T* row, int64_t classes, int64_t target, double weight, double divisor,
                                      T* grad) {
    const T largest = row_maximum(row, classes);
    const T sum = exponentials(row, classes, largest, grad);
    const T scale = static_cast<T>(weight / divisor), share = scale / sum;
    for (int64_t i = 0; i < classes; i += lanes<T>)
        store_partial(grad + i, load_partial(grad + i, classes - i) * share, classes - i);
    grad[target] -= scale;
    const double above = static_cast<double>(largest) - static_cast<double>(row[target]);
    return weight * (__builtin_log(static_cast<double>(sum)) + above);
}

template <class T>
void softmax_cross_entropy(const SoftmaxCrossEntropy<T>& p) {
    constexpr double cost_of_a_class = 20;
    const double elements = static_cast<double>(p.rows * p.classes);
    run_parallel(threads_for(cost_of_a_class * elements), [&](const Worker& worker) {
        const Range mine = split(p.rows, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            T* grad = p.grad_logits + i * p.classes;
            p.loss[i] = 0;
            if (p.targets[i] == p.ignore_index)  // whatever the logits are, NaN included
                __builtin_memset(grad, 0, static_cast<std::size_t>(p.classes) * sizeof(T));
            else
                p.loss[i] = cross_entropy_row<T>(p.logits + i * p.classes, p.classes, p.targets[i],
                                                 p.weights ? static_cast<double>(p.weights[i]) : 1.0, p.divisor, grad);
        }
    });
}

// The elements of one run; weight(offset, count) is that of the elements from `offset` on. All arithmetic is in double.
template <class T, class Weight>
TBPTT_INLINE double squared_error_run(const SquaredError<T>& p, Range run, Weight weight) {
    const Vec<double> twice = broadcast(2.0 / p.divisor);
    Vec<double> sums{};
    for (int64_t i = run.begin; i < run.end; i += lanes<double>) {
        const int64_t count = run.end - i;
        const Vec<double> difference = load_double(p.prediction + i, count) - load_double(p.target + i, count);
        const Vec<double> weighted = weight(i, count) * difference, loss = weighted * difference;
        store_double(p.grad_prediction + i, weighted * twice, count);
        if (p.loss) store_double(p.loss + i, loss, count);
        sums += first_lanes<double>(loss, count);  // the others are 0 · weight, which may be NaN
    }
    return sum_lanes<double>(sums);
}

// A run is a row when rows have weights, else a block of fixed size: nothing depends on the number of threads.
template <class T>
void squared_error(const SquaredError<T>& p) {
    constexpr int64_t block = 4096;
    const bool weight_per_run = p.weights && p.columns > 1;
    const int64_t elements = p.rows * p.columns, width = weight_per_run ? p.columns : block;
    const int64_t runs = ceil_div(elements, width);
    Buffer<double> sums(runs);
    run_parallel(threads_for(8.0 * static_cast<double>(elements)), [&](const Worker& worker) {
        const Range mine = split(runs, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const Range run{i * width, smaller((i + 1) * width, elements)};
            if (!p.weights)
                sums[i] = squared_error_run(p, run, [](int64_t, int64_t) { return broadcast(1.0); });
            else if (!weight_per_run)
                sums[i] =
                    squared_error_run(p, run, [&](int64_t j, int64_t n) { return load_double(p.weights + j, n); });
            else
                sums[i] = squared_error_run(
                    p, run, [w = static_cast<double>(p.weights[i])](int64_t, int64_t) { return broadcast(w); });
        }
    });
    *p.sum = 0;
    for (int64_t i = 0; i < runs; ++i) *p.sum += sums[i];
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
