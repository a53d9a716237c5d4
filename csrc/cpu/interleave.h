// Transposition of small blocks, and planes to and from one run of memory in which their elements take turns.
#pragma once

#include "vec.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TBPTT_SHUFFLES 1
#endif
#endif

namespace tbptt {
namespace TBPTT_ISA {

template <int... I>
struct LaneList {};

template <int N, int... I>
struct FirstLanes : FirstLanes<N - 1, N - 1, I...> {};
template <int... I>
struct FirstLanes<0, I...> {
    using Type = LaneList<I...>;
};

template <class T>
using AllLanes = typename FirstLanes<lanes<T>>::Type;

#if defined(TBPTT_SHUFFLES)

// The lower halves of a and b in turns, or the upper halves.
template <bool Upper, class V, int... I>
TBPTT_INLINE V interleave_halves(V a, V b, LaneList<I...>) {
    constexpr int L = sizeof...(I);
    return __builtin_shufflevector(a, b, ((Upper ? L / 2 : 0) + I / 2 + I % 2 * L)...);
}

// rows [lanes] = their transpose: each step takes the highest bit of an element's row to the lowest of its lane, and the
// highest of its lane to the lowest of its row.
template <class T>
TBPTT_INLINE void transpose(Vec<T>* rows) {
    constexpr int L = lanes<T>;
#pragma GCC unroll 4
    for (int step = 1; step < L; step *= 2) {
        Vec<T> next[L];
#pragma GCC unroll 8
        for (int r = 0; r < L / 2; ++r) {
            next[2 * r] = interleave_halves<false>(rows[r], rows[r + L / 2], AllLanes<T>{});
            next[2 * r + 1] = interleave_halves<true>(rows[r], rows[r + L / 2], AllLanes<T>{});
        }
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) rows[r] = next[r];
    }
}

// Vector J of the run in which M planes take turns, once plane S has been added to what the planes before it gave.
template <int M, int J, int S, class V, int... I>
TBPTT_INLINE V join_plane(V before, V plane, LaneList<I...>) {
    constexpr int L = sizeof...(I);
    return __builtin_shufflevector(before, plane,
                                   ((J * L + I) % M == S ? L + (J * L + I) / M
                                    : S == 1             ? (J * L + I) / M
                                                         : I)...);
}

template <int M, int J, int S, class V>
TBPTT_INLINE V join_planes(const V* planes) {
    using Index = typename FirstLanes<sizeof(V) / sizeof((*planes)[0])>::Type;
    if constexpr (S == 0)
        return planes[0];
    else
        return join_plane<M, J, S>(join_planes<M, J, S - 1>(planes), planes[S], Index{});
}

template <int M, int J, class T>
TBPTT_INLINE void store_joined(const Vec<T>* planes, T* to) {
    if constexpr (J < M) {
        store(to + J * lanes<T>, join_planes<M, J, M - 1>(planes));
        store_joined<M, J + 1>(planes, to);
    }
}

// Plane P of M that take turns in a run, once vector S of the run has been added to what the vectors before it gave.
template <int M, int P, int S, class V, int... I>
TBPTT_INLINE V part_vector(V before, V vector, LaneList<I...>) {
    constexpr int L = sizeof...(I);
    return __builtin_shufflevector(before, vector,
                                   ((I * M + P) / L == S             ? L + (I * M + P) % L
                                    : S == 1 && (I * M + P) / L == 0 ? (I * M + P) % L
                                                                     : I)...);
}

template <int M, int P, int S, class V>
TBPTT_INLINE V part_vectors(const V* run) {
    using Index = typename FirstLanes<sizeof(V) / sizeof((*run)[0])>::Type;
    if constexpr (S == 0)
        return run[0];
    else
        return part_vector<M, P, S>(part_vectors<M, P, S - 1>(run), run[S], Index{});
}

template <int M, int P, class T>
TBPTT_INLINE void store_parted(const Vec<T>* run, T* to, int64_t pitch) {
    if constexpr (P < M) {
        store(to + P * pitch, part_vectors<M, P, M - 1>(run));
        store_parted<M, P + 1>(run, to, pitch);
    }
}

#else

template <class T>
TBPTT_INLINE void transpose(Vec<T>* rows) {
    for (int r = 0; r < lanes<T>; ++r)
        for (int c = 0; c < r; ++c) {
            const T value = rows[r][c];
            rows[r][c] = rows[c][r];
            rows[c][r] = value;
        }
}

#endif

// to [columns][to_ld] = the transpose of from [rows][from_ld], whose first `rows` · `columns` elements count; both numbers
// are rounded up to whole vectors in `to`, with zeros.
template <class T>
TBPTT_INLINE void transpose_block(const T* from, int64_t from_ld, int64_t rows, int64_t columns, T* to, int64_t to_ld) {
    constexpr int L = lanes<T>;
    for (int64_t r = 0; r < rows; r += L)
        for (int64_t c = 0; c < columns; c += L) {
            Vec<T> block[L];
            const T* at = from + r * from_ld + c;
            if (rows - r >= L && columns - c >= L) {
#pragma GCC unroll 16
                for (int i = 0; i < L; ++i) block[i] = load(at + i * from_ld);
            } else {
                for (int i = 0; i < L; ++i)
                    block[i] = i < rows - r ? load_partial(at + i * from_ld, columns - c) : Vec<T>{};
            }
            transpose<T>(block);
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) store(to + (c + i) * to_ld + r, block[i]);
        }
}

template <int M, class T>
TBPTT_INLINE int64_t join_vectors(const T* const* planes, int64_t count, T* to) {
    int64_t i = 0;
#if defined(TBPTT_SHUFFLES)
    for (; i + lanes<T> <= count; i += lanes<T>) {
        Vec<T> values[M];
        for (int m = 0; m < M; ++m) values[m] = load(planes[m] + i);
        store_joined<M, 0>(values, to + i * M);
    }
#endif
    return i;
}

// Elements 0, 2, 4, … of a and b, one after the other.
template <class T>
TBPTT_INLINE Vec<T> every_second(Vec<T> a, Vec<T> b) {
#if defined(TBPTT_SHUFFLES)
    const Vec<T> run[2] = {a, b};
    return part_vectors<2, 0, 1>(run);
#else
    constexpr int half = lanes<T> / 2;
    Vec<T> result;
    for (int i = 0; i < half; ++i) result[i] = a[2 * i], result[half + i] = b[2 * i];
    return result;
#endif
}

// to [count][m] = planes [m][count]
template <class T>
void join(const T* const* planes, int64_t m, int64_t count, T* to) {
    int64_t done = 0;
    switch (m) {
        case 2: done = join_vectors<2>(planes, count, to); break;
        case 3: done = join_vectors<3>(planes, count, to); break;
        case 4: done = join_vectors<4>(planes, count, to); break;
        case 6: done = join_vectors<6>(planes, count, to); break;
        default: break;
    }
    for (int64_t i = done; i < count; ++i)
        for (int64_t k = 0; k < m; ++k) to[i * m + k] = planes[k][i];
}

template <int M, class T>
TBPTT_INLINE int64_t part_vectors_of(const T* from, int64_t count, T* to, int64_t pitch) {
    int64_t i = 0;
#if defined(TBPTT_SHUFFLES)
    for (; i + lanes<T> <= count; i += lanes<T>) {
        Vec<T> run[M];
        for (int m = 0; m < M; ++m) run[m] = load(from + i * M + m * lanes<T>);
        store_parted<M, 0>(run, to + i, pitch);
    }
#endif
    return i;
}

// to [m][count], `pitch` apart, = from [count][m]
template <class T>
void part(const T* from, int64_t m, int64_t count, T* to, int64_t pitch) {
    int64_t done = 0;
    switch (m) {
        case 2: done = part_vectors_of<2>(from, count, to, pitch); break;
        case 3: done = part_vectors_of<3>(from, count, to, pitch); break;
        case 4: done = part_vectors_of<4>(from, count, to, pitch); break;
        default: break;
    }
    for (int64_t k = 0; k < m; ++k)
        for (int64_t i = done; i < count; ++i) to[k * pitch + i] = from[i * m + k];
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
