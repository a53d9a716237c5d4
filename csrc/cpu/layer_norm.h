// Layer normalization. The statistics of each row are summed in double and in two passes; the sums of its gradients are
// sums of T over blocks, which are added up in double. A row is read from memory once: later passes find it in the cache,
// and ask for the next row meanwhile.
#pragma once

#include "normalization.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
TBPTT_INLINE void layer_norm_row(const LayerNormForward<T>& p, int64_t row) {
    const T *const x = p.x + row * p.columns, *const weight = p.weight, *const bias = p.bias;
    T* const y = p.y + row * p.columns;
    const double columns = static_cast<double>(p.columns);
    Sum<double> sum, squares;
    walk<double>({0, p.columns}, [&](int64_t i, int64_t n, int k) { sum.part[k] += load_double(x + i, n); });
    const double average = sum.total() / columns;
    walk<double>({0, p.columns}, [&](int64_t i, int64_t n, int k) {
        prefetch_far(x + p.columns + i);
        const Vec<double> difference = first_lanes<double>(load_double(x + i, n) - average, n);
        squares.part[k] += difference * difference;
    });
    p.mean[row] = average;
    p.inv_std[row] = 1 / __builtin_sqrt(squares.total() / columns + p.eps);
    const Mean<T> mean = split_mean<T>(average);
    const T scale = static_cast<T>(p.inv_std[row]);
    cover<T>(p.columns, [&](int64_t i, int64_t n) {
        const Vec<T> normal = (load_partial(x + i, n) - mean.high - mean.low) * scale;
        store_partial(y + i, normal * load_or<T>(1, weight, i, n) + load_or<T>(0, bias, i, n), n);
    });
}

template <class T>
void layer_norm_forward(const LayerNormForward<T>& p) {
    const double elements = static_cast<double>(p.rows) * static_cast<double>(p.columns);
    run_parallel(threads_for(cost_of_normalizing * elements), [&](const Worker& worker) {
        const Range mine = split(p.rows, worker);
        for (int64_t row = mine.begin; row < mine.end; ++row) layer_norm_row(p, row);
    });
}

// Of one row: x̂ = (x - mean)·inv_std, dx = dy·weight·inv_std + x̂·slope + shift.
template <class T>
struct RowTerms {
    Mean<T> mean;
    T inv_std, slope, shift;

    TBPTT_INLINE Vec<T> normal(const T* x, int64_t count) const {
        return (load_partial(x, count) - mean.high - mean.low) * inv_std;
    }
};

// With g = dy·weight, dx = inv_std·(g - mean of g - x̂·mean of g·x̂) (Ba, Kiros and Hinton 2016).
template <class T>
TBPTT_INLINE RowTerms<T> row_terms(const LayerNormBackward<T>& p, int64_t row) {
    constexpr int64_t block = 16 * sums_together * lanes<T>;  // sums of T are at most 16 long
    const double inv_std = p.inv_std[row], columns = static_cast<double>(p.columns);
    RowTerms<T> terms{split_mean<T>(p.mean[row]), static_cast<T>(inv_std), 0, 0};
    if (!p.grad_x) return terms;
    const T *const x = p.x + row * p.columns, *const dy = p.grad_y + row * p.columns, *const weight = p.weight;
    const T* const dx = p.grad_x + row * p.columns;
    double sum = 0, product = 0;
    for (int64_t i = 0; i < p.columns; i += block) {
        Sum<T> sums, products;
        walk<T>({i, smaller(i + block, p.columns)}, [&](int64_t j, int64_t n, int k) {
            const Vec<T> g = load_partial(dy + j, n) * load_or<T>(1, weight, j, n);
            prefetch_to_write(dx + j);
            sums.part[k] += g;
            products.part[k] += first_lanes<T>(g * terms.normal(x + j, n), n);
        });
        sum += sums.total();
        product += products.total();
    }
    terms.slope = static_cast<T>(-inv_std * product / columns);
    terms.shift = static_cast<T>(-inv_std * sum / columns);
    return terms;
}

// The sums Σ dy and Σ dy·x̂ over some rows [columns], or null.
template <class T>
struct ColumnSums {
    T *sum, *product;
};

// Some rows share a turn at the sums.
template <int Rows, class T>
TBPTT_INLINE void layer_norm_rows(const LayerNormBackward<T>& p, int64_t row, const ColumnSums<T>& to) {
    const int64_t columns = p.columns;
    const T *const x = p.x + row * columns, *const dy = p.grad_y + row * columns, *const weight = p.weight;
    T *const dx = p.grad_x ? p.grad_x + row * columns : nullptr, *const sum = to.sum, *const product = to.product;
    RowTerms<T> terms[Rows];
    for (int r = 0; r < Rows; ++r) terms[r] = row_terms(p, row + r);
    const auto body = [&](int64_t i, int64_t n) {
        const Vec<T> weights = load_or<T>(1, weight, i, n);
        Vec<T> sums{}, products{};
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            prefetch_far(dy + (Rows + r) * columns + i);
            prefetch_far(x + (Rows + r) * columns + i);
            const Vec<T> gradient = load_partial(dy + r * columns + i, n),
                         normal = terms[r].normal(x + r * columns + i, n);
            if (dx)
                store_partial(dx + r * columns + i,
                              gradient * weights * terms[r].inv_std + (normal * terms[r].slope + terms[r].shift), n);
            sums += gradient;
            products += gradient * normal;
        }
        if (!sum) return;
        store_partial(sum + i, load_partial(sum + i, n) + sums, n);
        store_partial(product + i, load_partial(product + i, n) + products, n);
    };
    int64_t i = 0;
    for (; i + lanes<T> <= columns; i += lanes<T>) body(i, lanes<T>);
    if (i < columns) body(i, columns - i);
}

// Rows are cut into blocks, each with sums of its own for dw and db, which take those of 16 rows at a time. There are at
// most 128; and they are high where rows are many, for the sums go through memory as the rows do.
template <class T>
void layer_norm_backward(const LayerNormBackward<T>& p) {
    constexpr int64_t together = 16;
    const int64_t height = larger(larger(together, smaller<int64_t>(64, p.rows / 16)), ceil_div(p.rows, 128));
    const int64_t columns = p.columns, blocks = ceil_div(p.rows, height);
    const bool summed = p.grad_w || p.grad_b;
    const int64_t parts = summed ? blocks * columns : 0;
    Buffer<double> of_blocks(2 * parts);
    double *const sums = of_blocks, *const products = of_blocks + parts;
    const double elements = static_cast<double>(p.rows) * static_cast<double>(columns);
    const int threads = threads_for(cost_of_normalizing * elements);
    Buffer<T> memory(summed ? 2 * columns * threads : 0);
    run_parallel(threads, [&](const Worker& worker) {
        const Range mine = split(blocks, worker), my_columns = split(columns, worker);
        T* const own = summed ? memory + 2 * columns * worker.index : nullptr;
        const ColumnSums<T> some{own, summed ? own + columns : nullptr};
        for (int64_t b = mine.begin; b < mine.end; ++b) {
            const int64_t end = smaller((b + 1) * height, p.rows);
            for (int64_t first = b * height; first < end; first += together) {
                const int64_t last = smaller(first + together, end);
                if (summed) fill(own, 2 * columns, T{0});
                int64_t row = first;
                for (; row + 2 <= last; row += 2) layer_norm_rows<2>(p, row, some);
                for (; row < last; ++row) layer_norm_rows<1>(p, row, some);
                for (int64_t i = 0; summed && i < columns; ++i) {
                    const bool begins = first == b * height;
                    double &sum = sums[b * columns + i], &product = products[b * columns + i];
                    sum = (begins ? 0 : sum) + static_cast<double>(some.sum[i]);
                    product = (begins ? 0 : product) + static_cast<double>(some.product[i]);
                }
            }
        }
        if (!summed) return;
        wait_for_all(worker);
        for (int64_t i = my_columns.begin; i < my_columns.end; i += lanes<double>) {
            const int64_t n = my_columns.end - i;
            Vec<double> sum{}, product{};
            for (int64_t j = i; j < parts; j += columns) {
                sum += load_partial(sums + j, n);
                product += load_partial(products + j, n);
            }
            if (p.grad_b) store_double(p.grad_b + i, sum, n);
            if (p.grad_w) store_double(p.grad_w + i, product, n);
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
