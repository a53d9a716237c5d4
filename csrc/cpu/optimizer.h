// Fused updates of all parameters of a network: one pass for the norm of the gradients, one for the update.
//
// The arrays are cut into blocks of fixed size, so that neither a sum nor an element's path through the code depends on
// the number of threads.
#pragma once

#include "../cells/optimizer.h"
#include "reduce.h"
#include "vector_math.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int64_t optimizer_block = 4096;  // elements; a multiple of every vector

template <class T>
TBPTT_INLINE int64_t count_blocks(const Parameters<T>& list) {
    int64_t blocks = 0;
    for (int64_t i = 0; i < list.count; ++i) blocks += ceil_div(list.arrays[i].count, optimizer_block);
    return blocks;
}

// Calls body(number of the block, array, range of its elements) for every block. Workers take blocks when they are free:
// beside a framework, a core may be busy with the spinning threads of its last operation.
template <class T, class Body>
TBPTT_INLINE void for_each_block(const Parameters<T>& list, int64_t blocks, Body body) {
    constexpr double cost_of_an_element = 8;
    int64_t elements = 0, counted = 0;
    Buffer<int64_t> ends(list.count);  // blocks of an array and of those before it
    for (int64_t i = 0; i < list.count; ++i) {
        elements += list.arrays[i].count;
        ends[i] = counted += ceil_div(list.arrays[i].count, optimizer_block);
    }
    const int threads = threads_for(cost_of_an_element * static_cast<double>(elements));
    Tasks tasks(blocks, threads);
    run_parallel(threads, [&](const Worker& worker) {
        tasks.run(worker, [&](int64_t block) {
            int64_t low = 0, high = list.count - 1;  // the first array that ends behind the block
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (ends[middle] > block)
                    high = middle;
                else
                    low = middle + 1;
            }
            const OptimizerArray<T>& array = list.arrays[low];
            const int64_t begin = (block - (low > 0 ? ends[low - 1] : 0)) * optimizer_block;
            body(block, array, Range{begin, smaller(begin + optimizer_block, array.count)});
        });
    });
}

constexpr int64_t bytes_ahead = 2048;  // fetched before they are needed, across the ends of pages

// Negative when an element is not finite.
template <bool Clipped, class T>
TBPTT_INLINE double sum_of_squares(const T* from, Range range, T limit_value) {
    constexpr int L = lanes<double>, unrolled = 8;  // sums side by side hide the latency of an addition
    // Squares of floats are finite in double: without clipping, their sum tells what they were.
    constexpr bool checks = Clipped || sizeof(T) == 8;
    const Vec<double> limit = broadcast(static_cast<double>(limit_value));
    Vec<double> sums[unrolled]{}, zeros[unrolled]{};
    const auto add = [&](Vec<double> x, int k) {
        if (checks) zeros[k] += x - x;  // NaN when x is not finite, and from then on
        const Vec<double> clipped = Clipped ? clip<Vec<double>>(x, limit) : x;
        sums[k] += clipped * clipped;
    };
    int64_t i = range.begin;
    for (; i + unrolled * L <= range.end; i += unrolled * L) {
        prefetch<unrolled* static_cast<int>(sizeof(T)) / 8>(from + i + bytes_ahead / static_cast<int64_t>(sizeof(T)));
#pragma GCC unroll 8
        for (int k = 0; k < unrolled; ++k) add(load_double(from + i + k * L), k);
    }
    for (; i < range.end; i += L) add(load_double(from + i, range.end - i), 0);
    for (int half = unrolled / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) {
            sums[k] += sums[k + half];
            zeros[k] += zeros[k + half];
        }
    const double sum = sum_lanes<double>(sums[0]);
    const bool finite = checks ? sum_lanes<double>(zeros[0]) == 0 : sum - sum == 0;
    return finite ? sum : -1;
}

template <class T>
void gradient_norm(const GradientNorm<T>& p) {
    const int64_t blocks = count_blocks(p.list);
    Buffer<double> sums(blocks);
    const T limit = static_cast<T>(p.list.clip_value);
    const bool clipped = limit < static_cast<T>(__builtin_inf());
    for_each_block(p.list, blocks, [&](int64_t block, const OptimizerArray<T>& array, Range range) {
        sums[block] =
            clipped ? sum_of_squares<true>(array.grad, range, limit) : sum_of_squares<false>(array.grad, range, limit);
    });
    double sum = 0;
    *p.non_finite = -1;
    for (int64_t i = 0, block = 0; i < p.list.count; ++i)
        for (const int64_t end = block + ceil_div(p.list.arrays[i].count, optimizer_block); block < end; ++block) {
            if (sums[block] < 0 && *p.non_finite < 0) *p.non_finite = i;
            sum += sums[block];
        }
    *p.norm = *p.non_finite < 0 ? __builtin_sqrt(sum) : __builtin_nan("");
}

TBPTT_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
TBPTT_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
struct UpdateMath {
    using Value = Vec<T>;
    // One instruction: the compiler knows the pattern.
    static TBPTT_INLINE Value sqrt(Value x) {
        Value root;
        for (int i = 0; i < lanes<T>; ++i) root[i] = square_root(x[i]);
        return root;
    }
};

// One vector of every array; all lanes of it where it is Full.
template <int states, bool Full, class T, class Rule>
TBPTT_INLINE void update_vector(const OptimizerArray<T>& array, int64_t i, int64_t count, Vec<T> limit, T factor,
                                const Rule& rule) {
    Update<Vec<T>> u{};
    u.param = load_lanes<Full>(array.param + i, count);
    u.grad = clip<Vec<T>>(load_lanes<Full>(array.grad + i, count), limit) * factor;
    if (states & first_state) u.first = load_lanes<Full>(array.first + i, count);
    if (states & second_state) u.second = load_lanes<Full>(array.second + i, count);
    if (states & third_state) u.third = load_lanes<Full>(array.third + i, count);
    rule(u);
    store_lanes<Full>(array.param + i, u.param, count);
    if (states & first_state) store_lanes<Full>(array.first + i, u.first, count);
    if (states & second_state) store_lanes<Full>(array.second + i, u.second, count);
    if (states & third_state) store_lanes<Full>(array.third + i, u.third, count);
}

// Calls rule(Update&) on all elements; `states` is a sum of States.
template <int states, class T, class Rule>
TBPTT_INLINE void update_all(const Parameters<T>& list, Rule shared_rule) {
    for_each_block(list, count_blocks(list), [&](int64_t, const OptimizerArray<T>& shared_array, Range range) {
        // Copies, which no store can change: the compiler keeps them in registers.
        const OptimizerArray<T> array = shared_array;
        const Rule rule = shared_rule;
        const Vec<T> limit = broadcast(static_cast<T>(list.clip_value));
        const T factor = static_cast<T>(list.factor);
        constexpr int64_t ahead = bytes_ahead / static_cast<int64_t>(sizeof(T));
        constexpr int together = 64 / TBPTT_VECTOR_BYTES;  // a cache line of every array
        int64_t i = range.begin;
        for (; i + together * lanes<T> <= range.end; i += together * lanes<T>) {
            prefetch<together>(array.param + i + ahead);
            prefetch<together>(array.grad + i + ahead);
            if (states & first_state) prefetch<together>(array.first + i + ahead);
            if (states & second_state) prefetch<together>(array.second + i + ahead);
            if (states & third_state) prefetch<together>(array.third + i + ahead);
#pragma GCC unroll 4
            for (int k = 0; k < together; ++k)
                update_vector<states, true>(array, i + k * lanes<T>, lanes<T>, limit, factor, rule);
        }
        for (; i < range.end; i += lanes<T>) update_vector<states, false>(array, i, range.end - i, limit, factor, rule);
    });
}

template <class T, class Step>
TBPTT_INLINE void update_by_rule(const Step& p) {
    with_rule(p, [&](const auto rule) {
        update_all<decltype(rule)::states>(p.list, [=](Update<Vec<T>>& u) { rule.template apply<UpdateMath<T>>(u); });
    });
}

template <class T>
void sgd_step(const SgdStep<T>& p) {
    update_by_rule<T>(p);
}

template <class T>
void rmsprop_step(const RmspropStep<T>& p) {
    update_by_rule<T>(p);
}

template <class T>
void adam_step(const AdamStep<T>& p) {
    update_by_rule<T>(p);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
