// Rows of a table by their ids, and the sum of gradients back into the table.
//
// Backward, positions are sorted by their ids, so that every row of the table adds up its own gradients, in an order that
// depends on the ids alone. The sort goes digit by digit from the last, and keeps the order of equal digits.
#pragma once

#include "api.h"
#include "maths.h"
#include "reduce.h"
#include "vectors.h"

namespace tbptt {
namespace cuda {

constexpr unsigned embedding_threads = 256;
constexpr std::int64_t embedding_items = 4 * embedding_threads;  // vectors that a block copies

template <class T>
struct EmbeddingRows {
    EmbeddingForward<T> p;
    std::int64_t embeddings, items;
    Divider row;  // vectors of one
};

template <class T, int L>
__global__ void __launch_bounds__(embedding_threads) copy_rows(const EmbeddingRows<T> p) {
    const std::int64_t first = blockIdx.x * embedding_items;
    const Places places(first, p.row);
    for (std::uint32_t i = threadIdx.x; i < embedding_items && first + i < p.items; i += embedding_threads) {
        const Place place = places[i];
        const std::int64_t id = p.p.ids[place.row];
        Vector<T, L> values;
        if (id >= 0 && id < p.embeddings) {
            values = load_vector<L>(p.p.w + id * p.p.width + std::int64_t{place.column} * L);
        } else {
#pragma unroll
            for (int k = 0; k < L; ++k) values.value[k] = not_a_number<T>();
        }
        store_vector(p.p.y + (first + i) * L, values);
    }
}

template <class T>
void embedding_forward(const EmbeddingForward<T>& p, std::int64_t embeddings, const Call& call) {
    constexpr int L = vector_values<T>;
    const bool by_vectors = p.width % L == 0 && all_aligned(p.w, p.y);
    const std::int64_t row = by_vectors ? p.width / L : p.width, items = p.rows * row;
    if (items == 0) return;
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(items, embedding_items));
    grid.threads = embedding_threads;
    launch(by_vectors ? &copy_rows<T, L> : &copy_rows<T, 1>, grid, call.stream,
           EmbeddingRows<T>{p, embeddings, items, Divider(row)});
}

struct WidenIds {
    const std::int32_t* from;
    std::int64_t* to;
    std::int64_t count;
};

template <class Id>
__global__ void __launch_bounds__(embedding_threads) widen_ids(const WidenIds p) {
    for (std::int64_t i = global_index(); i < p.count; i += global_count()) p.to[i] = static_cast<Id>(p.from[i]);
}

constexpr int digit_bits = 8, digits = 1 << digit_bits;
constexpr unsigned sort_threads = 256;  // one for each digit
constexpr int sort_rounds = 8;          // positions of a tile for each thread
constexpr int sort_tile = sort_rounds * static_cast<int>(sort_threads);

// One pass of the sort. The keys are the ids at the positions so far; an id outside of the table stands behind all others.
template <class Position>
struct SortPass {
    int count, tiles, shift;
    std::int64_t embeddings;
    const std::int64_t* ids;  // [count]
    const Position* from;     // [count] positions so far, or null: as they are
    Position* to;             // out = [count]
    int* before;  // [digits, tiles]: how many keys of a tile have the digit; then, how many do in tiles before
    int* totals;  // [digits]: how many keys have the digit
};

TBPTT_DEVICE std::int64_t sort_key(const std::int64_t* ids, std::int64_t embeddings, int position) {
    const std::int64_t id = ids[position];
    return id >= 0 && id < embeddings ? id : embeddings;
}

template <class Position>
TBPTT_DEVICE Position position_at(const SortPass<Position>& p, Position i) {
    return p.from ? p.from[i] : i;
}

template <class Position>
TBPTT_DEVICE int digit_of(const SortPass<Position>& p, Position position) {
    return static_cast<int>(sort_key(p.ids, p.embeddings, position) >> p.shift) & (digits - 1);
}

// How many lanes have the same digit, and how many of them come before this one.
struct Peers {
    int all, before;
};

TBPTT_DEVICE Peers find_peers(int digit) {
    Peers peers{0, 0};
    for (int lane = 0; lane < warp_size; ++lane) {
        const bool same = from_lane(digit, lane) == digit;
        peers.all += same;
        peers.before += same && lane < lane_index();
    }
    return peers;
}

// Calls body(position, its digit, how many of the tile before it have the digit) for the positions of a tile, in rounds;
// before a round, counted[digit] of all rounds before is known to all. Without a position the digit is -1.
template <class Position, class Body>
TBPTT_DEVICE void walk_tile(const SortPass<Position>& p, Body body) {
    constexpr int warps = static_cast<int>(sort_threads) / warp_size;
    int* const counted = shared_memory<int>();       // [digits], of the rounds before
    int* const by_warp = counted + digits;           // [warps, digits], of this round
    const int mine = static_cast<int>(threadIdx.x);  // as a digit
    const int first = static_cast<int>(blockIdx.x) * sort_tile;
    counted[mine] = 0;
    for (int round = 0; round < sort_rounds; ++round) {
        const int i = first + round * static_cast<int>(sort_threads) + mine;
        const int position = i < p.count ? position_at(p, i) : -1, digit = position >= 0 ? digit_of(p, position) : -1;
        for (int w = 0; w < warps; ++w) by_warp[w * digits + mine] = 0;
        __syncthreads();
        const Peers peers = find_peers(digit);
        if (digit >= 0 && peers.before == 0) by_warp[warp_index() * digits + digit] = peers.all;
        __syncthreads();
        if (digit >= 0) {
            int rank = counted[digit] + peers.before;
            for (int w = 0; w < warp_index(); ++w) rank += by_warp[w * digits + digit];
            body(position, digit, rank);
        }
        __syncthreads();
        for (int w = 0; w < warps; ++w) counted[mine] += by_warp[w * digits + mine];
    }
}

template <class Position>
__global__ void __launch_bounds__(sort_threads) count_digits(const SortPass<Position> p) {
    walk_tile(p, [](int, int, int) {});
    const int digit = static_cast<int>(threadIdx.x);
    p.before[digit * p.tiles + static_cast<int>(blockIdx.x)] = shared_memory<int>()[digit];
}

// Σ of the values of the threads before this one; `total`, of all.
TBPTT_DEVICE int add_before(int value, int* shared, int& total) {
    int sum = value;
    for (int step = 1; step < warp_size; step *= 2) {
        const int other = from_lane(sum, lane_index() >= step ? lane_index() - step : lane_index());
        if (lane_index() >= step) sum += other;
    }
    if (lane_index() == warp_size - 1) shared[warp_index()] = sum;
    __syncthreads();
    int before = 0;
    total = 0;
    for (int w = 0; w < warp_count(); ++w) {
        if (w < warp_index()) before += shared[w];
        total += shared[w];
    }
    __syncthreads();
    return before + sum - value;
}

// A block for each digit.
template <class Position>
__global__ void __launch_bounds__(sort_threads) add_tiles(const SortPass<Position> p) {
    int* const counts = p.before + blockIdx.x * static_cast<unsigned>(p.tiles);
    int sum = 0;
    for (int first = 0; first < p.tiles; first += static_cast<int>(blockDim.x)) {
        const int tile = first + static_cast<int>(threadIdx.x);
        int total;
        const int before = add_before(tile < p.tiles ? counts[tile] : 0, shared_memory<int>(), total);
        if (tile < p.tiles) counts[tile] = sum + before;
        sum += total;
    }
    if (threadIdx.x == 0) p.totals[blockIdx.x] = sum;
}

template <class Position>
__global__ void __launch_bounds__(sort_threads) move_positions(const SortPass<Position> p) {
    constexpr int warps = static_cast<int>(sort_threads) / warp_size;
    int* const starts = shared_memory<int>() + (1 + warps) * digits;  // behind what walk_tile uses
    const int digit = static_cast<int>(threadIdx.x);
    int total;
    const int smaller_digits = add_before(p.totals[digit], shared_memory<int>(), total);
    starts[digit] = smaller_digits + p.before[digit * p.tiles + static_cast<int>(blockIdx.x)];
    walk_tile(p, [&](int position, int of, int rank) { p.to[starts[of] + rank] = position; });
}

template <class Position>
struct FindStarts {
    int count;
    std::int64_t embeddings;
    const std::int64_t* ids;
    const Position* order;  // [count] positions, sorted by id
    int* starts;            // out = [embeddings + 1]: the first place in `order` with this id or a larger one
};

template <class Position>
__global__ void __launch_bounds__(256) find_starts(const FindStarts<Position> p) {
    for (std::int64_t v = global_index(); v <= p.embeddings; v += global_count()) {
        int low = 0, high = p.count;
        while (low < high) {
            const int middle = low + (high - low) / 2;
            if (sort_key(p.ids, p.embeddings, p.order[middle]) < v)
                low = middle + 1;
            else
                high = middle;
        }
        p.starts[v] = low;
    }
}

constexpr int short_run = 128;  // gradients that one team adds up
constexpr int chunk = 1024;     // places in the order of the ids that a block adds up, where all have one id

template <class T>
struct EmbeddingSums {
    EmbeddingBackward<T> p;
    const int* order;
    const int* starts;
    int team;  // threads of a row: a power of two up to 32
    T* parts;  // [rows / chunk, width]: the sums of the chunks of one id
};

// Adds to `sum` the gradients at every `step`-th place from `begin` on.
template <int L, class T>
TBPTT_DEVICE void add_run(const EmbeddingSums<T>& p, int begin, int end, int step, std::int64_t column,
                          Vector<T, L>& sum) {
#pragma unroll 4
    for (int i = begin; i < end; i += step) {
        const auto grad = load_vector<L>(p.p.grad_y + p.order[i] * p.p.width + column);
#pragma unroll
        for (int k = 0; k < L; ++k) sum.value[k] += grad.value[k];
    }
}

// The block's teams add up by themselves, add(column, sum), and then together, to [width].
template <int L, class T, class Add>
TBPTT_DEVICE void add_by_teams(const EmbeddingSums<T>& p, T* to, Add add) {
    const int team = static_cast<int>(threadIdx.x) / p.team, lane = static_cast<int>(threadIdx.x) % p.team;
    const int teams = static_cast<int>(embedding_threads) / p.team;
    auto* const sums = shared_memory<Vector<T, L>>();
    for (std::int64_t base = 0; base < p.p.width; base += p.team * L) {
        const std::int64_t column = base + lane * L;
        if (column < p.p.width) {
            Vector<T, L> sum{};
            add(column, sum);
            sums[threadIdx.x] = sum;
        }
        __syncthreads();
        if (team == 0 && column < p.p.width) {
            Vector<T, L> sum = sums[lane];
            for (int t = 1; t < teams; ++t)
#pragma unroll
                for (int k = 0; k < L; ++k) sum.value[k] += sums[t * p.team + lane].value[k];
            store_vector(to + column, sum);
        }
        __syncthreads();
    }
}

// A block for each whole chunk, so that an id that comes often keeps many of them busy.
template <class T, int L>
__global__ void __launch_bounds__(embedding_threads) add_chunks(const EmbeddingSums<T> p) {
    const int begin = static_cast<int>(blockIdx.x) * chunk, end = begin + chunk;
    const std::int64_t id = sort_key(p.p.ids, p.p.embeddings, p.order[begin]);
    if (id != sort_key(p.p.ids, p.p.embeddings, p.order[end - 1]) || id == p.p.embeddings) return;
    const int team = static_cast<int>(threadIdx.x) / p.team, teams = static_cast<int>(embedding_threads) / p.team;
    add_by_teams<L>(p, p.parts + blockIdx.x * p.p.width, [&](std::int64_t column, Vector<T, L>& sum) {
        add_run<L>(p, begin + team, end, teams, column, sum);
    });
}

// A team for each row of the table; for those with many gradients all teams of the block, one after the other: over what is
// not in whole chunks, and over the sums of the chunks.
template <class T, int L>
__global__ void __launch_bounds__(embedding_threads) add_gradients(const EmbeddingSums<T> p) {
    const int team = static_cast<int>(threadIdx.x) / p.team, lane = static_cast<int>(threadIdx.x) % p.team;
    const int teams = static_cast<int>(embedding_threads) / p.team;
    const std::int64_t first = std::int64_t{blockIdx.x} * teams, width = p.p.width;
    const bool broken = p.starts[p.p.embeddings] < static_cast<int>(p.p.rows);  // by an id outside
    const std::int64_t mine = first + team;
    if (mine < p.p.embeddings) {
        const int begin = p.starts[mine], end = p.starts[mine + 1];
        for (std::int64_t column = lane * L; column < width && (end - begin <= short_run || broken);
             column += p.team * L) {
            Vector<T, L> sum{};
            if (!broken) add_run<L>(p, begin, end, 1, column, sum);
#pragma unroll
            for (int k = 0; k < L; ++k) sum.value[k] = broken ? not_a_number<T>() : sum.value[k];
            store_vector(p.p.grad_w + mine * width + column, sum);
        }
    }
    if (broken) return;
    for (int row = 0; row < teams && first + row < p.p.embeddings; ++row) {
        const int begin = p.starts[first + row], end = p.starts[first + row + 1];
        if (end - begin <= short_run) continue;
        const int first_chunk = begin / chunk + (begin % chunk != 0), past_chunk = end / chunk;
        const bool chunked = first_chunk < past_chunk;
        const int before = chunked ? first_chunk * chunk : end, behind = chunked ? past_chunk * chunk : end;
        add_by_teams<L>(p, p.p.grad_w + (first + row) * width, [&](std::int64_t column, Vector<T, L>& sum) {
            add_run<L>(p, begin + team, before, teams, column, sum);
            for (int c = first_chunk + team; c < past_chunk; c += teams) {
                const auto part = load_vector<L>(p.parts + c * width + column);
#pragma unroll
                for (int k = 0; k < L; ++k) sum.value[k] += part.value[k];
            }
            add_run<L>(p, behind + team, end, teams, column, sum);
        });
    }
}

template <class T>
void embedding_backward(const EmbeddingBackward<T>& p, const Call& call) {
    if (p.embeddings * p.width == 0) return;
    if (p.rows == 0)
        return set_bytes(p.grad_w, 0, static_cast<std::size_t>(p.embeddings * p.width) * sizeof(T), call.stream);
    const std::int64_t tiles = divide_up(p.rows, sort_tile);
    const Scratch<int> even(p.rows, call.stream), odd(p.rows, call.stream), before(digits * tiles, call.stream),
        totals(digits, call.stream), starts(p.embeddings + 1, call.stream);
    SortPass<int> pass{
        static_cast<int>(p.rows), static_cast<int>(tiles), 0, p.embeddings, p.ids, nullptr, even, before, totals};
    Grid by_tiles, by_digits;
    by_tiles.x = static_cast<unsigned>(tiles);
    by_digits.x = digits;
    by_tiles.threads = by_digits.threads = sort_threads;
    by_tiles.shared_bytes = (2 + sort_threads / warp_size) * digits * sizeof(int);
    by_digits.shared_bytes = 32 * sizeof(int);
    for (;; pass.shift += digit_bits) {
        launch(&count_digits<int>, by_tiles, call.stream, pass);
        launch(&add_tiles<int>, by_digits, call.stream, pass);
        launch(&move_positions<int>, by_tiles, call.stream, pass);
        if (p.embeddings >> pass.shift < digits) break;
        pass.from = pass.to;
        pass.to = pass.to == static_cast<int*>(even) ? odd : even;
    }
    launch(&find_starts<int>, grid_for(p.embeddings + 1), call.stream,
           FindStarts<int>{pass.count, p.embeddings, p.ids, pass.to, starts});

    constexpr int L = vector_values<T>;
    const bool by_vectors = p.width % L == 0 && all_aligned(p.grad_y, p.grad_w);
    const std::int64_t chunks = p.rows / chunk;
    const Scratch<T> parts(chunks * p.width, call.stream);
    EmbeddingSums<T> sums{p, pass.to, starts, 1, parts};
    while (sums.team < warp_size && sums.team * (by_vectors ? L : 1) < p.width) sums.team *= 2;
    Grid grid;
    grid.threads = embedding_threads;
    grid.x = static_cast<unsigned>(divide_up(p.embeddings * sums.team, embedding_threads));
    grid.shared_bytes = embedding_threads * 16;
    Grid by_chunks = grid;
    by_chunks.x = static_cast<unsigned>(chunks);
    launch(by_vectors ? &add_chunks<T, L> : &add_chunks<T, 1>, by_chunks, call.stream, sums);
    launch(by_vectors ? &add_gradients<T, L> : &add_gradients<T, 1>, grid, call.stream, sums);
}

}  // namespace cuda
}  // namespace tbptt
