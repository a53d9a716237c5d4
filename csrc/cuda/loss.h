// Losses with their gradients in one pass. Sums are in double: parts of fixed size first, then the parts.
#pragma once

#include "../cells/loss.h"
#include "softmax.h"

namespace tbptt {
namespace cuda {

constexpr std::int64_t loss_block = 4096;  // values of one part

template <class T>
struct WeightParts {
    std::int64_t rows, ignore_index;
    const std::int64_t* targets;  // or null: all rows count
    const T* weights;             // or null (ones)
    double* parts;                // out = of each block
};

template <class T>
__global__ void __launch_bounds__(256) add_weights(const WeightParts<T> p) {
    const std::int64_t begin = blockIdx.x * loss_block, end = begin + loss_block < p.rows ? begin + loss_block : p.rows;
    double sum = 0;
    for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x)
        if (!p.targets || p.targets[i] != p.ignore_index) sum += p.weights ? static_cast<double>(p.weights[i]) : 1.0;
    sum = combine_block(sum, 0.0, shared_memory<double>(), Sum());
    if (threadIdx.x == 0) p.parts[blockIdx.x] = sum;
}

// *total = `times` · Σ weights of the rows that count.
template <class T>
void total_weight(WeightParts<T> p, double times, double* total, const Call& call) {
    const std::int64_t blocks = divide_up(p.rows, loss_block);
    const Scratch<double> parts(blocks, call.stream);
    p.parts = parts;
    Grid grid;
    grid.x = static_cast<unsigned>(blocks);
    grid.shared_bytes = 32 * sizeof(double);
    launch(&add_weights<T>, grid, call.stream, p);
    launch(&add_parts<double>, one_block(blocks), call.stream, Parts<double>{parts, blocks, times, nullptr, 1, total});
}

template <class T>
struct CrossEntropyRows {
    SoftmaxCrossEntropy<T> p;
    T* each;
    RowTeams teams;
    const double* divisor;  // or null
    double* parts;          // out = of each block
};

template <class T, int L, bool Block>
__global__ void __launch_bounds__(512) cross_entropy_rows(const CrossEntropyRows<T> p) {
    const RowTeam<Block> team(p.teams);
    const std::int64_t row = team.row(), classes = p.teams.columns;
    const bool inside = row < p.teams.rows;
    const std::int64_t target = inside ? p.p.targets[row] : 0;
    const bool counts = inside && target != p.p.ignore_index;  // else whatever the logits are, NaN included
    const T* const logits = p.p.logits + row * classes;
    const auto of = normalizer_of<L>(counts ? logits : nullptr, classes, team);
    double loss = 0;
    if (inside) {
        const bool known = target >= 0 && target < classes;
        const double weight = !known        ? not_a_number<double>()
                              : p.p.weights ? static_cast<double>(p.p.weights[row])
                                            : 1.0;
        const T scale = static_cast<T>(weight / (p.divisor ? *p.divisor : p.p.divisor)), share = scale / of.sum;
        T* const grad = p.p.grad_logits + row * classes;
        for (std::int64_t i = team.index() * L; i < classes; i += team.size() * L) {
            Vector<T, L> slope{};
            if (counts) {
                slope = load_vector<L>(logits + i);
#pragma unroll
                for (int k = 0; k < L; ++k) {
                    slope.value[k] = exponential(slope.value[k] - of.largest) * share;
                    if (i + k == target) slope.value[k] -= scale;
                }
            }
            store_vector(grad + i, slope);
        }
        if (counts && team.index() == 0) {
            const double above = static_cast<double>(of.largest) - static_cast<double>(logits[known ? target : 0]);
            loss = weight * (::log(static_cast<double>(of.sum)) + above);
        }
        if (p.each && team.index() == 0) p.each[row] = static_cast<T>(loss);
    }
    loss = combine_block(loss, 0.0, shared_memory<double>(), Sum());
    if (threadIdx.x == 0) p.parts[blockIdx.x] = loss;
}

template <class T>
void softmax_cross_entropy(const SoftmaxCrossEntropy<T>& p, T* each, const Total& total, const Call& call) {
    const Scratch<double> weight(1, call.stream);
    if (total.mean) total_weight<T>({p.rows, p.ignore_index, p.targets, p.weights, nullptr}, 1, weight, call);
    const double* const divisor = total.mean ? static_cast<double*>(weight) : nullptr;
    const bool aligned = all_aligned(p.logits, p.grad_logits);
    with_rows<T>(p.rows, p.classes, aligned, [&](auto vector, auto block, const RowLaunch& shared) {
        constexpr int L = decltype(vector)::value;
        constexpr bool Block = decltype(block)::value == 1;
        const Scratch<double> parts(shared.grid.x, call.stream);
        launch(&cross_entropy_rows<T, L, Block>, shared.grid, call.stream,
               CrossEntropyRows<T>{p, each, shared.teams, divisor, parts});
        launch(&add_parts<double>, one_block(shared.grid.x), call.stream,
               Parts<double>{parts, shared.grid.x, 1, divisor, p.divisor, total.loss});
    });
}

template <class T>
struct PointwiseParts {
    PointwiseLoss<T> p;
    const double* divisor;  // or null
    double* parts;          // out = of each block
    bool by_vectors;
};

template <Loss kind, class T>
class PointwiseBlock {
   public:
    TBPTT_DEVICE PointwiseBlock(const PointwiseParts<T>& p)
        : p_(p.p), share_(1.0 / (p.divisor ? *p.divisor : p.p.divisor)) {}

    // The values at i … i + L - 1; all arithmetic is in double, as on the CPU.
    template <int L>
    TBPTT_DEVICE void take(std::int64_t i) {
        const auto prediction = load_vector<L>(p_.prediction + i), target = load_vector<L>(p_.target + i);
        Vector<T, L> grad, each;
        std::int64_t row = p_.weights ? i / p_.columns : 0, column = p_.weights ? i - row * p_.columns : 0;
#pragma unroll
        for (int k = 0; k < L; ++k) {
            const double weight = p_.weights ? static_cast<double>(p_.weights[row]) : 1.0;
            const auto found =
                loss_of<kind>(static_cast<double>(prediction.value[k]), static_cast<double>(target.value[k]), p_.delta);
            const double loss = weight * found.loss;
            grad.value[k] = static_cast<T>(weight * found.slope * share_);
            each.value[k] = static_cast<T>(loss);
            sum += loss;
            if (++column == p_.columns) {
                column = 0;
                ++row;
            }
        }
        store_vector(p_.grad_prediction + i, grad);
        if (p_.loss) store_vector(p_.loss + i, each);
    }

    double sum = 0;

   private:
    const PointwiseLoss<T>& p_;
    const double share_;
};

template <Loss kind, class T>
__global__ void __launch_bounds__(256) pointwise_losses(const PointwiseParts<T> p) {
    constexpr int L = vector_values<T>;
    PointwiseBlock<kind, T> block(p);
    const std::int64_t elements = p.p.rows * p.p.columns, begin = blockIdx.x * loss_block;
    const std::int64_t end = begin + loss_block < elements ? begin + loss_block : elements;
    const std::int64_t whole = p.by_vectors ? begin + (end - begin) / L * L : begin;
    for (std::int64_t i = begin + L * std::int64_t{threadIdx.x}; i < whole; i += L * std::int64_t{blockDim.x})
        block.template take<L>(i);
    for (std::int64_t i = whole + threadIdx.x; i < end; i += blockDim.x) block.template take<1>(i);
    const double sum = combine_block(block.sum, 0.0, shared_memory<double>(), Sum());
    if (threadIdx.x == 0) p.parts[blockIdx.x] = sum;
}

template <class T>
void pointwise_loss(const PointwiseLoss<T>& p, const Total& total, const Call& call) {
    const std::int64_t elements = p.rows * p.columns, blocks = divide_up(elements, loss_block);
    const bool weighted_mean = total.mean && p.weights;
    const Scratch<double> parts(blocks, call.stream), weight(weighted_mean ? 1 : 0, call.stream);
    if (weighted_mean)
        total_weight<T>({p.rows, 0, nullptr, p.weights, nullptr}, static_cast<double>(p.columns), weight, call);
    PointwiseParts<T> q{p, weight, parts, all_aligned(p.prediction, p.target, p.grad_prediction, p.loss)};
    if (total.mean && !p.weights) q.p.divisor = static_cast<double>(elements);
    Grid grid;
    grid.x = static_cast<unsigned>(blocks);
    grid.shared_bytes = 32 * sizeof(double);
    switch (p.kind) {
        case Loss::squared: launch(&pointwise_losses<Loss::squared, T>, grid, call.stream, q); break;
        case Loss::absolute: launch(&pointwise_losses<Loss::absolute, T>, grid, call.stream, q); break;
        case Loss::huber: launch(&pointwise_losses<Loss::huber, T>, grid, call.stream, q); break;
        case Loss::hinge: launch(&pointwise_losses<Loss::hinge, T>, grid, call.stream, q); break;
    }
    launch(&add_parts<double>, one_block(blocks), call.stream,
           Parts<double>{parts, blocks, 1, weight, q.p.divisor, total.loss});
}

}  // namespace cuda
}  // namespace tbptt
