// Fused updates of all parameters of a network: a launch for the norm of the gradients, one to add it up, one for the update.
//
// The arrays are cut into blocks of fixed size, as on the CPU. Their list is a kernel's parameter: nothing is copied to the
// device before, and a graph keeps the list with the launch.
#pragma once

#include "../cells/optimizer.h"
#include "api.h"
#include "maths.h"
#include "reduce.h"
#include "vectors.h"

namespace tbptt {
namespace cuda {

constexpr std::int64_t optimizer_block = 4096;  // elements
constexpr unsigned optimizer_threads = 256;

// A launch for few arrays is cheaper with a short list. Long ones need a driver of CUDA 12.1.
constexpr int short_list = 64;
#if !defined(TBPTT_EMULATED) && CUDART_VERSION < 12010
constexpr int long_list = short_list;
#else
constexpr int long_list = 600;
#endif

template <class T, int capacity>
struct ArrayTable {
    OptimizerArray<T> arrays[capacity];
    unsigned ends[capacity];  // blocks of an array and of those before it
    int count;
};

// The part of an array that a block of threads has.
template <class T>
struct ArrayPart {
    const OptimizerArray<T>* array;
    int index;
    std::int64_t begin, end;
};

template <class T, int capacity>
TBPTT_DEVICE ArrayPart<T> find_part(const ArrayTable<T, capacity>& table) {
    int low = 0, high = table.count - 1;  // the first array that ends behind the block
    while (low < high) {
        const int middle = (low + high) / 2;
        if (table.ends[middle] > blockIdx.x)
            high = middle;
        else
            low = middle + 1;
    }
    const OptimizerArray<T>& array = table.arrays[low];
    const std::int64_t begin = std::int64_t{blockIdx.x - (low > 0 ? table.ends[low - 1] : 0)} * optimizer_block;
    const std::int64_t end = begin + optimizer_block;
    return {&array, low, begin, end < array.count ? end : array.count};
}

// Calls body(offset) or body(offset, whole vector) for the elements of a part, by this thread's share of them.
template <class T, class Vectors, class Single>
TBPTT_DEVICE void walk_part(const ArrayPart<T>& part, bool by_vectors, Vectors vectors, Single single) {
    constexpr int L = vector_values<T>;
    const std::int64_t whole = by_vectors ? part.begin + (part.end - part.begin) / L * L : part.begin;
    for (std::int64_t i = part.begin + L * std::int64_t{threadIdx.x}; i < whole; i += L * std::int64_t{blockDim.x})
        vectors(i);
    for (std::int64_t i = whole + threadIdx.x; i < part.end; i += blockDim.x) single(i);
}

template <class T, int capacity>
struct NormParts {
    ArrayTable<T, capacity> table;
    std::int64_t first_array, first_block;
    T clip_value;
    double* parts;  // out = Σ g² of each block, or -1 - index of the array where an element is not finite
};

template <class T, int capacity>
__global__ void __launch_bounds__(optimizer_threads) add_squares(const NormParts<T, capacity> p) {
    const ArrayPart<T> part = find_part(p.table);
    const T* const grad = part.array->grad;
    const double limit = static_cast<double>(p.clip_value);
    double sum = 0, zero = 0;
    const auto add = [&](double x) {
        zero += x - x;  // NaN when x is not finite, and from then on
        const double clipped = clip<double>(x, limit);
        sum += clipped * clipped;
    };
    walk_part(
        part, all_aligned(grad),
        [&](std::int64_t i) {
            const auto values = load_vector<vector_values<T>>(grad + i);
#pragma unroll
            for (int k = 0; k < vector_values<T>; ++k) add(static_cast<double>(values.value[k]));
        },
        [&](std::int64_t i) { add(static_cast<double>(grad[i])); });
    double* const shared = shared_memory<double>();
    sum = combine_block(sum, 0.0, shared, Sum());
    zero = combine_block(zero, 0.0, shared, Sum());
    if (threadIdx.x == 0)
        p.parts[p.first_block + blockIdx.x] = zero == 0 ? sum : -1.0 - static_cast<double>(p.first_array + part.index);
}

template <class T>
struct NormOfParts {
    const T* parts;
    std::int64_t count;
    T* norm;                   // out =
    std::int64_t* non_finite;  // out = or null
};

template <class T>
__global__ void finish_norm(const NormOfParts<T> p) {
    constexpr T none = -9007199254740992.0;  // below minus the index of any array
    T sum = 0, minus_first = none;
    for (std::int64_t i = threadIdx.x; i < p.count; i += blockDim.x) {
        const T part = p.parts[i];
        if (part < 0)
            minus_first = Larger()(minus_first, part + 1);
        else
            sum += part;
    }
    T* const shared = shared_memory<T>();
    sum = combine_block(sum, T{0}, shared, Sum());
    minus_first = combine_block(minus_first, none, shared, Larger());
    if (threadIdx.x != 0) return;
    const bool finite = minus_first == none;
    *p.norm = finite ? square_root(sum) : not_a_number<T>();
    if (p.non_finite) *p.non_finite = finite ? -1 : static_cast<std::int64_t>(-minus_first);
}

template <class T>
struct TwoNorms {
    const T *a, *b;
    T* norm;
};

template <class T>
__global__ void combine(const TwoNorms<T> p) {
    // With one type these are the bits of its own norm, squares of large norms apart.
    if (threadIdx.x == 0) *p.norm = *p.a == 0 ? *p.b : *p.b == 0 ? *p.a : square_root(*p.a * *p.a + *p.b * *p.b);
}

// Of Adam's averages, which begin at zero.
struct BiasCorrections {
    double step_size, inverse_root;  // see AdamStep
};

template <class Rule>
constexpr bool has_corrections = false;
template <class T, bool amsgrad>
constexpr bool has_corrections<AdamRule<T, amsgrad>> = true;

constexpr int counter_list = 256;  // of one launch

template <class Counter>
struct CounterList {
    Counter* counters[counter_list];  // out +=
    int count;
    double lr, beta1, beta2;
    const double* norm;      // or null
    BiasCorrections* found;  // out = [count]
};

template <class Counter>
__global__ void __launch_bounds__(counter_list) advance_counters(const CounterList<Counter> p) {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= p.count) return;
    const Counter next = *p.counters[i] + 1;
    if (!p.norm || *p.norm == *p.norm) *p.counters[i] = next;
    const auto number = static_cast<double>(next);
    p.found[i] = {p.lr / (1 - ::pow(p.beta1, number)), 1 / square_root(1 - ::pow(p.beta2, number))};
}

template <class Counter, class T>
void advance_all(const AdamStep<T>& step, const StepCounters& given, const double* norm, BiasCorrections* found,
                 const Call& call) {
    CounterList<Counter> list{{}, 0, given.lr, step.beta1, step.beta2, norm, found};
    for (std::int64_t first = 0; first < given.count; first += list.count) {
        const std::int64_t left = given.count - first;
        list.count = left < counter_list ? static_cast<int>(left) : counter_list;
        list.found = found + first;
        for (int i = 0; i < list.count; ++i) list.counters[i] = static_cast<Counter*>(given.counters[first + i]);
        Grid grid;
        grid.threads = counter_list;
        launch(&advance_counters<Counter>, grid, call.stream, list);
    }
}

// Corrections on the device, in place of those that the host knows; null: none.
struct Corrected {
    const BiasCorrections* found;
    bool each;  // for every array, not for all
};

template <class T, class Rule, int capacity>
struct UpdateParameters {
    ArrayTable<T, capacity> table;
    Rule rule;
    T clip_value;
    double factor;
    ClipByNorm clip;
    Corrected corrected;  // from the table's first array on
};

template <class T>
struct UpdateMath {
    using Value = T;
    static TBPTT_DEVICE T sqrt(T x) { return square_root(x); }
};

template <int count, class T, class Rule>
TBPTT_DEVICE void update_at(const OptimizerArray<T>& array, std::int64_t i, T limit, T factor, const Rule& rule) {
    constexpr int states = Rule::states;
    using V = Vector<T, count>;
    V param = load_vector<count>(array.param + i), grad = load_vector<count>(array.grad + i);
    V first{}, second{}, third{};
    if (states & first_state) first = load_vector<count>(array.first + i);
    if (states & second_state) second = load_vector<count>(array.second + i);
    if (states & third_state) third = load_vector<count>(array.third + i);
#pragma unroll
    for (int k = 0; k < count; ++k) {
        Update<T> u{param.value[k], clip(grad.value[k], limit) * factor, first.value[k], second.value[k],
                    third.value[k]};
        rule.template apply<UpdateMath<T>>(u);
        param.value[k] = u.param;
        first.value[k] = u.first;
        second.value[k] = u.second;
        third.value[k] = u.third;
    }
    store_vector(array.param + i, param);
    if (states & first_state) store_vector(array.first + i, first);
    if (states & second_state) store_vector(array.second + i, second);
    if (states & third_state) store_vector(array.third + i, third);
}

template <class T, class Rule, int capacity>
__global__ void __launch_bounds__(optimizer_threads, 3) update_arrays(const UpdateParameters<T, Rule, capacity> p) {
    T factor = static_cast<T>(p.factor);
    if (p.clip.norm) {
        constexpr double torch_eps = 1e-6;  // as in torch.nn.utils.clip_grad_norm_
        const double norm = *p.clip.norm, share = p.clip.max_norm / (norm + torch_eps);
        if (norm != norm) return;
        if (share < 1) factor = static_cast<T>(p.factor * share);
    }
    const ArrayPart<T> part = find_part(p.table);
    const OptimizerArray<T> array = *part.array;
    const T limit = p.clip_value;
    Rule rule = p.rule;
    if constexpr (has_corrections<Rule>) {
        if (p.corrected.found) {
            const BiasCorrections found = p.corrected.found[p.corrected.each ? part.index : 0];
            rule.step_size = static_cast<T>(found.step_size);
            rule.inverse_root = static_cast<T>(found.inverse_root);
        }
    }
    // Arrays that a rule does not use are null, or nobody's business: to look at their alignment costs nothing.
    walk_part(
        part, all_aligned(array.param, array.grad, array.first, array.second, array.third),
        [&](std::int64_t i) { update_at<vector_values<T>>(array, i, limit, factor, rule); },
        [&](std::int64_t i) { update_at<1>(array, i, limit, factor, rule); });
}

// Calls f(table, first array, first block) for as many arrays as a launch has room for, until all have come.
template <int capacity, class T, class F>
void for_each_table(const Parameters<T>& list, F f) {
    std::int64_t blocks_before = 0;
    for (std::int64_t first = 0; first < list.count;) {
        ArrayTable<T, capacity> table;
        table.count = 0;
        unsigned blocks = 0;
        std::int64_t i = first;
        for (; i < list.count && table.count < capacity; ++i, ++table.count) {
            table.arrays[table.count] = list.arrays[i];
            table.ends[table.count] = blocks += static_cast<unsigned>(divide_up(list.arrays[i].count, optimizer_block));
        }
        f(table, first, blocks_before, blocks);
        first = i;
        blocks_before += blocks;
    }
}

inline Grid grid_of_blocks(unsigned blocks) {
    Grid grid;
    grid.x = blocks;
    grid.threads = optimizer_threads;
    grid.shared_bytes = 32 * sizeof(double);
    return grid;
}

template <int capacity, class T>
void add_all_squares(const Parameters<T>& list, double* parts, const Call& call) {
    for_each_table<capacity>(list, [&](const auto& table, std::int64_t first, std::int64_t before, unsigned blocks) {
        const NormParts<T, capacity> p{table, first, before, static_cast<T>(list.clip_value), parts};
        launch(&add_squares<T, capacity>, grid_of_blocks(blocks), call.stream, p);
    });
}

template <class T>
void gradient_norm(const GradientNorm<T>& p, const Call& call) {
    std::int64_t blocks = 0;
    for (std::int64_t i = 0; i < p.list.count; ++i) blocks += divide_up(p.list.arrays[i].count, optimizer_block);
    const Scratch<double> parts(blocks, call.stream);
    if (p.list.count <= short_list)
        add_all_squares<short_list>(p.list, parts, call);
    else
        add_all_squares<long_list>(p.list, parts, call);
    launch(&finish_norm<double>, one_block(blocks), call.stream,
           NormOfParts<double>{parts, blocks, p.norm, p.non_finite});
}

template <int capacity, class T, class Rule>
void update_all(const Parameters<T>& list, const Rule& rule, const ClipByNorm& clip, const Corrected& corrected,
                const Call& call) {
    for_each_table<capacity>(list, [&](const auto& table, std::int64_t first, std::int64_t, unsigned blocks) {
        const Corrected here{corrected.each ? corrected.found + first : corrected.found, corrected.each};
        const UpdateParameters<T, Rule, capacity> p{table,       rule, static_cast<T>(list.clip_value),
                                                    list.factor, clip, here};
        launch(&update_arrays<T, Rule, capacity>, grid_of_blocks(blocks), call.stream, p);
    });
}

// `Step` is one of the optimizers' parameters.
template <class T, class Step>
void update_by_rule(const Step& p, const ClipByNorm& clip, const Corrected& corrected, const Call& call) {
    with_rule(p, [&](const auto& rule) {
        if (p.list.count <= short_list)
            update_all<short_list>(p.list, rule, clip, corrected, call);
        else
            update_all<long_list>(p.list, rule, clip, corrected, call);
    });
}

template <class T>
void sgd_step(const SgdStep<T>& p, const ClipByNorm& clip, const Call& call) {
    update_by_rule<T>(p, clip, {}, call);
}

template <class T>
void rmsprop_step(const RmspropStep<T>& p, const ClipByNorm& clip, const Call& call) {
    update_by_rule<T>(p, clip, {}, call);
}

template <class T>
void adam_step(const AdamStep<T>& p, const StepCounters& counters, const ClipByNorm& clip, const Call& call) {
    if (!counters.counters) return update_by_rule<T>(p, clip, {}, call);
    const Scratch<BiasCorrections> found(counters.count, call.stream);
    if (counters.floats)
        advance_all<float>(p, counters, clip.norm, found, call);
    else
        advance_all<std::int64_t>(p, counters, clip.norm, found, call);
    update_by_rule<T>(p, clip, {found, counters.count > 1}, call);
}

}  // namespace cuda
}  // namespace tbptt
