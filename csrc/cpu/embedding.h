// Rows of a table by their ids, and the sum of gradients back into the table.
#pragma once

#include "../api.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr double cost_of_a_copy = 4;  // one element, in units of `threads_for`

template <class T>
void embedding_forward(const EmbeddingForward<T>& p) {
    const std::size_t bytes = static_cast<std::size_t>(p.width) * sizeof(T);
    run_parallel(threads_for(cost_of_a_copy * static_cast<double>(p.rows * p.width)), [&](const Worker& worker) {
        const Range mine = split(p.rows, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i)
            __builtin_memcpy(p.y + i * p.width, p.w + p.ids[i] * p.width, bytes);
    });
}

// The positions of each id, by a counting sort: those of id v are order[starts[v]] … order[starts[v + 1] - 1], ascending.
TBPTT_INLINE void sort_by_id(const int64_t* ids, int64_t rows, int64_t embeddings, int64_t* starts, int64_t* order) {
    for (int64_t v = 0; v < embeddings + 2; ++v) starts[v] = 0;
    for (int64_t i = 0; i < rows; ++i) ++starts[ids[i] + 2];
    for (int64_t v = 0; v < embeddings; ++v) starts[v + 2] += starts[v + 1];
    for (int64_t i = 0; i < rows; ++i) order[starts[ids[i] + 1]++] = i;
}

// Each worker owns rows of the table, as many as make an equal share of the additions and of the clearing: no two workers
// meet, and every element is added up in the order of the ids.
template <class T>
void embedding_backward(const EmbeddingBackward<T>& p) {
    Buffer<int64_t> starts(p.embeddings + 2), order(p.rows);
    sort_by_id(p.ids, p.rows, p.embeddings, starts, order);
    const int64_t work = p.rows + p.embeddings;
    run_parallel(threads_for(cost_of_a_copy * static_cast<double>(work * p.width)), [&](const Worker& worker) {
        const Range mine = split(work, worker);
        for (int64_t v = 0; v < p.embeddings; ++v) {
            const int64_t before = starts[v] + v;
            if (before < mine.begin || before >= mine.end) continue;
            T* sum = p.grad_w + v * p.width;
            __builtin_memset(sum, 0, static_cast<std::size_t>(p.width) * sizeof(T));
            for (int64_t k = starts[v]; k < starts[v + 1]; ++k) {
                const T* grad = p.grad_y + order[k] * p.width;
                for (int64_t j = 0; j < p.width; j += lanes<T>)
                    store_partial(sum + j, load_partial(sum + j, p.width - j) + load_partial(grad + j, p.width - j),
                                  p.width - j);
            }
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
