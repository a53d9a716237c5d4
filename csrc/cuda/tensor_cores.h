// The product of small tiles by one warp, on tensor cores where the chip has them for the type: [16, 8] += [16, 8]·[8, 8].
//
// Lane l = 4·g + t holds of a [row, k] the four values (g, t), (g+8, t), (g, t+4), (g+8, t+4), of b [k, column] the two
// (t, g), (t+4, g), of the sum [row, column] the four (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
#pragma once

#include "device.h"

namespace tbptt {
namespace cuda {

constexpr int tile_rows = 16, tile_columns = 8, tile_depth = 8;

template <class T>
struct Fragments {
    T a[4], b[2];
};

// Without tensor cores for the type: the values come from lane to lane. In the emulator the only way.
template <class T>
TBPTT_DEVICE void multiply_by_lanes(T (&sum)[4], const T (&a)[4], const T (&b)[2]) {
#ifdef TBPTT_EMULATED
    const Fragments<T> mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const int g = lane_index() / 4, t = lane_index() % 4;
    emulator::exchange(mine, [&](auto of) {
        for (int k = 0; k < tile_depth; ++k) {
            const Fragments<T> row = of(4 * g + k % 4);
            const T left = of(4 * (2 * t) + k % 4).b[k / 4], right = of(4 * (2 * t + 1) + k % 4).b[k / 4];
            const T above = row.a[k / 4 * 2], below = row.a[k / 4 * 2 + 1];
            sum[0] += above * left;
            sum[1] += above * right;
            sum[2] += below * left;
            sum[3] += below * right;
        }
        return 0;
    });
#else
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int k = 0; k < tile_depth; ++k) {
        const T above = from_lane(a[k / 4 * 2], 4 * g + k % 4), below = from_lane(a[k / 4 * 2 + 1], 4 * g + k % 4);
        const T left = from_lane(b[k / 4], 8 * t + k % 4), right = from_lane(b[k / 4], 8 * t + 4 + k % 4);
        sum[0] += above * left;
        sum[1] += above * right;
        sum[2] += below * left;
        sum[3] += below * right;
    }
#endif
}

// The nearest value with the 10 bits behind the point that TF32 has, ties away from zero.
TBPTT_DEVICE float to_tf32(float x) {
#ifdef TBPTT_EMULATED
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
    std::memcpy(&x, &bits, sizeof(bits));
    return x;
#elif __CUDA_ARCH__ >= 800
    std::uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    return x;
#endif
}

// x as the sum of two TF32 numbers. Inf and NaN are all in the small one, which no other small one meets: what is left of a
// finite number may be zero.
TBPTT_DEVICE void split_in_two(float x, float& large, float& small) {
    const float nearest = to_tf32(x), rest = x - nearest;
    const bool finite = rest - rest == 0.0f;
    large = finite ? nearest : 0.0f;
    small = finite ? to_tf32(rest) : x;
}

// Operands that are TF32 numbers already.
TBPTT_DEVICE void multiply_tf32(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
#if !defined(TBPTT_EMULATED) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
    multiply_by_lanes(sum, a, b);
#endif
}

// sum += a·b. Exact: each float32 is split into two TF32 numbers, and three of the four products are taken, the smallest
// first; what is left out is below the rounding of float32.
template <bool Exact>
TBPTT_DEVICE void multiply_add(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
#if !defined(TBPTT_EMULATED) && __CUDA_ARCH__ < 800
    multiply_by_lanes(sum, a, b);  // float32 as it is
#else
    float large_a[4], large_b[2], small_a[4], small_b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) Exact ? split_in_two(a[i], large_a[i], small_a[i]) : void(large_a[i] = to_tf32(a[i]));
#pragma unroll
    for (int i = 0; i < 2; ++i) Exact ? split_in_two(b[i], large_b[i], small_b[i]) : void(large_b[i] = to_tf32(b[i]));
    if (Exact) {
        multiply_tf32(sum, small_a, large_b);
        multiply_tf32(sum, large_a, small_b);
    }
    multiply_tf32(sum, large_a, large_b);
#endif
}

template <bool Exact>
TBPTT_DEVICE void multiply_add(double (&sum)[4], const double (&a)[4], const double (&b)[2]) {
#if !defined(TBPTT_EMULATED) && __CUDA_ARCH__ >= 800
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                : "+d"(sum[2 * half]), "+d"(sum[2 * half + 1])
                : "d"(a[2 * k + half]), "d"(b[k]));
#else
    multiply_by_lanes(sum, a, b);
#endif
}

// Only float32 has a faster product that is not exact: double asks for one kernel.
template <class T>
constexpr bool is_single = sizeof(T) == sizeof(float);

}  // namespace cuda
}  // namespace tbptt
