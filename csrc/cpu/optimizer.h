// Fused updates of all parameters of a network: one pass for the norm of the gradients, one for the update.
//
// The arrays are cut into blocks of fixed size, so that neither a sum nor an element's path through the code depends on
// the number of threads.
#pragma once

#include <type_traits>

#include "../api.h"
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

template <class T>
TBPTT_INLINE Vec<T> clamp(Vec<T> x, Vec<T> limit) {
    return x > limit ? limit : x < -limit ? -limit : x;  // NaN stays
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
        const Vec<double> clipped = Clipped ? clamp<double>(x, limit) : x;
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

// One instruction: the compiler knows the pattern.
template <class T>
TBPTT_INLINE Vec<T> vec_sqrt(Vec<T> x) {
    Vec<T> root;
    for (int i = 0; i < lanes<T>; ++i) root[i] = square_root(x[i]);
    return root;
}

// A vector of each array of a parameter while it is updated.
template <class T>
struct Update {
    Vec<T> param, grad, first, second, third;
};

// The optimizer's own arrays that a rule uses.
enum States { none = 0, first = 1, second = 2, third = 4 };

// One vector of every array; all lanes of it where it is Full.
template <int states, bool Full, class T, class Rule>
TBPTT_INLINE void update_vector(const OptimizerArray<T>& array, int64_t i, int64_t count, Vec<T> limit, T factor,
                                const Rule& rule) {
    Update<T> u{};
    u.param = load_lanes<Full>(array.param + i, count);
    u.grad = clamp<T>(load_lanes<Full>(array.grad + i, count), limit) * factor;
    if (states & first) u.first = load_lanes<Full>(array.first + i, count);
    if (states & second) u.second = load_lanes<Full>(array.second + i, count);
    if (states & third) u.third = load_lanes<Full>(array.third + i, count);
    rule(u);
    store_lanes<Full>(array.param + i, u.param, count);
    if (states & first) store_lanes<Full>(array.first + i, u.first, count);
    if (states & second) store_lanes<Full>(array.second + i, u.second, count);
    if (states & third) store_lanes<Full>(array.third + i, u.third, count);
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
            if (states & first) prefetch<together>(array.first + i + ahead);
            if (states & second) prefetch<together>(array.second + i + ahead);
            if (states & third) prefetch<together>(array.third + i + ahead);
#pragma GCC unroll 4
            for (int k = 0; k < together; ++k)
                update_vector<states, true>(array, i + k * lanes<T>, lanes<T>, limit, factor, rule);
        }
        for (; i < range.end; i += lanes<T>) update_vector<states, false>(array, i, range.end - i, limit, factor, rule);
    });
}

template <class T>
void sgd_step(const SgdStep<T>& p) {
    const T lr = static_cast<T>(p.lr), mu = static_cast<T>(p.mu), decay = static_cast<T>(p.weight_decay);
    const T share = static_cast<T>(p.grad_share);
    if (p.mu == 0)
        update_all<none>(p.list, [=](Update<T>& u) { u.param -= lr * (u.grad + decay * u.param); });
    else
        update_all<first>(p.list, [=, nesterov = p.nesterov](Update<T>& u) {
            const Vec<T> grad = u.grad + decay * u.param;
            u.first = mu * u.first + share * grad;
            u.param -= lr * (nesterov ? grad + mu * u.first : u.first);
        });
}

template <class T>
void rmsprop_step(const RmspropStep<T>& p) {
    const T lr = static_cast<T>(p.lr), mu = static_cast<T>(p.mu), decay = static_cast<T>(p.weight_decay);
    const T alpha = static_cast<T>(p.alpha), rest = static_cast<T>(1 - p.alpha), eps = static_cast<T>(p.eps);
    const auto update = [&](auto centered, auto with_momentum) {
        constexpr int states =
            first | (decltype(with_momentum)::value ? second : 0) | (decltype(centered)::value ? third : 0);
        update_all<states>(p.list, [=](Update<T>& u) {
            const Vec<T> grad = u.grad + decay * u.param;
            u.first = alpha * u.first + rest * (grad * grad);
            Vec<T> variance = u.first;
            if (decltype(centered)::value) {
                u.third = alpha * u.third + rest * grad;
                variance -= u.third * u.third;
                variance = variance < 0 ? Vec<T>{} : variance;  // by rounding
            }
            const Vec<T> scaled = grad / (vec_sqrt<T>(variance) + eps);
            if (decltype(with_momentum)::value) u.second = mu * u.second + scaled;
            u.param -= lr * (decltype(with_momentum)::value ? u.second : scaled);
        });
    };
    const auto choose = [&](auto centered) {
        p.mu == 0 ? update(centered, std::false_type()) : update(centered, std::true_type());
    };
    p.centered ? choose(std::true_type()) : choose(std::false_type());
}

template <class T>
void adam_step(const AdamStep<T>& p) {
    const T beta1 = static_cast<T>(p.beta1), rest1 = static_cast<T>(1 - p.beta1);
    const T beta2 = static_cast<T>(p.beta2), rest2 = static_cast<T>(1 - p.beta2);
    const T step_size = static_cast<T>(p.step_size), inverse_root = static_cast<T>(p.inverse_root);
    const T eps = static_cast<T>(p.eps), decay = static_cast<T>(p.grad_decay), keep = static_cast<T>(p.param_keep);
    const auto update = [&](auto amsgrad) {
        update_all<first | second | (decltype(amsgrad)::value ? third : 0)>(p.list, [=](Update<T>& u) {
            const Vec<T> grad = u.grad + decay * u.param;
            u.first = beta1 * u.first + rest1 * grad;
            u.second = beta2 * u.second + rest2 * (grad * grad);
            if (decltype(amsgrad)::value) u.third = u.second > u.third ? u.second : u.third;
            const Vec<T> square = decltype(amsgrad)::value ? u.third : u.second;
            u.param = keep * u.param - step_size * u.first / (vec_sqrt<T>(square) * inverse_root + eps);
        });
    };
    p.amsgrad ? update(std::true_type()) : update(std::false_type());
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
