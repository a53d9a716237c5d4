// Layer normalization: statistics of each row in double and in two passes.
#pragma once

#include "normalization.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
void layer_norm_forward(const LayerNormForward<T>& p) {
    const double columns = static_cast<double>(p.columns);
    const auto normalize = [&](int64_t row) {
        const T* x = p.x + row * p.columns;
        Sum sum, squares;
        walk({0, p.columns}, [&](int64_t i, int64_t n, int k) { sum.part[k] += load_double(x + i, n); });
        const double average = sum.total() / columns;
        walk({0, p.columns}, [&](int64_t i, int64_t n, int k) {
            const Vec<double> difference = first_lanes<double>(load_double(x + i, n) - average, n);
            squares.part[k] += difference * difference;
        });
        p.mean[row] = average;
        p.inv_std[row] = 1 / __builtin_sqrt(squares.total() / columns + p.eps);
        const Mean<T> mean = split_mean<T>(average);
        const T scale = static_cast<T>(p.inv_std[row]);
        cover<T>(p.columns, [&](int64_t i, int64_t n) {
            const Vec<T> normal = (load_partial(x + i, n) - mean.high - mean.low) * scale;
            store_partial(p.y + row * p.columns + i,
                          normal * load_or<T>(1, p.weight, i, n) + load_or<T>(0, p.bias, i, n), n);
        });
    };
    run_parallel(threads_for(cost_of_normalizing * static_cast<double>(p.rows) * columns), [&](const Worker& worker) {
        const Range mine = split(p.rows, worker);
        for (int64_t row = mine.begin; row < mine.end; ++row) normalize(row);
    });
}

// dx of one row: with g = dy·weight and x̂ as above, inv_std·(g - mean of g - x̂·mean of g·x̂) (Ba, Kiros and Hinton 2016).
template <class T>
TBPTT_INLINE void layer_norm_row(const LayerNormBackward<T>& p, int64_t row) {
    const T *x = p.x + row * p.columns, *dy = p.grad_y + row * p.columns;
    const double average = p.mean[row], inv_std = p.inv_std[row], columns = static_cast<double>(p.columns);
    Sum sum, products;
    walk({0, p.columns}, [&](int64_t i, int64_t n, int k) {
        const Vec<double> weight = p.weight ? load_double(p.weight + i, n) : broadcast(1.0);
        const Vec<double> g = load_double(dy + i, n) * weight;
        sum.part[k] += g;
        products.part[k] += first_lanes<double>(g * (load_double(x + i, n) - average), n);
    });
    const Mean<T> mean = split_mean<T>(average);
    const T scale = static_cast<T>(inv_std), shift = static_cast<T>(-inv_std * sum.total() / columns);
    const T slope = static_cast<T>(-inv_std * inv_std * inv_std * products.total() / columns);
    cover<T>(p.columns, [&](int64_t i, int64_t n) {
        const Vec<T> through_x = (load_partial(x + i, n) - mean.high - mean.low) * slope + shift;
        const Vec<T> g = load_partial(dy + i, n) * load_or<T>(1, p.weight, i, n);
        store_partial(p.grad_x + row * p.columns + i, g * scale + through_x, n);
    });
}

// Rows are cut into at most 128 blocks; each has sums of its own for dw and db.
template <class T>
void layer_norm_backward(const LayerNormBackward<T>& p) {
    const int64_t height = larger<int64_t>(16, ceil_div(p.rows, 128)), blocks = ceil_div(p.rows, height);
    const bool summed = p.grad_w || p.grad_b;
    const int64_t parts = summed ? blocks * p.columns : 0;
    Buffer<double> of_blocks(2 * parts);
    double *const sums = of_blocks, *const products = of_blocks + parts;
    // Some rows at once, so that the sums are read and written less often.
    const auto add_up = [&](Range rows, double* sum, double* product) {
        walk({0, p.columns}, [&](int64_t i, int64_t n, int) {
            Vec<double> dys = load_double(sum + i, n), products_of_dys = load_double(product + i, n);
            for (int64_t row = rows.begin; row < rows.end; ++row) {
                const Vec<double> dy = load_double(p.grad_y + row * p.columns + i, n);
                dys += dy;
                products_of_dys += dy * ((load_double(p.x + row * p.columns + i, n) - p.mean[row]) * p.inv_std[row]);
            }
            store_double(sum + i, dys, n);
            store_double(product + i, products_of_dys, n);
        });
    };
    const double elements = static_cast<double>(p.rows * p.columns);
    run_parallel(threads_for(cost_of_normalizing * elements), [&](const Worker& worker) {
        const Range mine = split(blocks, worker), my_columns = split(p.columns, worker);
        for (int64_t b = mine.begin; b < mine.end; ++b) {
            double *const sum = sums + b * p.columns, *const product = products + b * p.columns;
            for (int64_t i = 0; summed && i < p.columns; ++i) sum[i] = product[i] = 0;
            const int64_t end = smaller((b + 1) * height, p.rows);
            for (int64_t row = b * height; row < end; row += 4) {
                const Range rows{row, smaller(row + 4, end)};
                for (int64_t i = rows.begin; p.grad_x && i < rows.end; ++i) layer_norm_row(p, i);
                if (summed) add_up(rows, sum, product);
            }
        }
        if (!summed) return;
        wait_for_all(worker);
        for (int64_t i = my_columns.begin; i < my_columns.end; ++i) {
            double sum = 0, product = 0;
            for (int64_t j = i; j < parts; j += p.columns) {
                sum += sums[j];
                product += products[j];
            }
            if (p.grad_b) p.grad_b[i] = static_cast<T>(sum);
            if (p.grad_w) p.grad_w[i] = static_cast<T>(product);
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
