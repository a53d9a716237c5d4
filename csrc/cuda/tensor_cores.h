// The product of small tiles by one warp, on tensor cores where the chip has them for the type: [16, 8] += [16, 8]·[8, 8].
// Of bfloat16 an element of the depth is two values (`Pair`), which makes it [16, 8] += [16, 16]·[16, 8].
//
// Lane l = 4·g + t holds of a [row, k] the four values (g, t), (g+8, t), (g, t+4), (g+8, t+4), of b [k, column] the two
// (t, g), (t+4, g), of the sum [row, column] the four (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
#pragma once

#include "device.h"

namespace tbptt {
namespace cuda {

constexpr int tile_rows = 16, tile_columns = 8, tile_depth = 8;

// Two values of bfloat16 that are neighbours in the depth, the first one in the lower half.
struct Pair {
    std::uint32_t bits;
};

template <class T>
struct PackedAs {
    using Type = T;
};
template <>
struct PackedAs<Bfloat16> {
    using Type = Pair;
};

// What a lane holds of an operand at one element of the depth, and how many values that is.
template <class T>
using Packed = typename PackedAs<T>::Type;
template <class T>
constexpr int packed_values = static_cast<int>(sizeof(Packed<T>) / sizeof(T));

TBPTT_DEVICE Pair pair_of(Bfloat16 first, Bfloat16 second) {
    return {first.bits | static_cast<std::uint32_t>(second.bits) << 16};
}

// Of two pairs their first values, and their second ones: a pair becomes one of the other direction.
TBPTT_DEVICE Pair pair_firsts(Pair a, Pair b) { return {(a.bits & 0xffffu) | b.bits << 16}; }
TBPTT_DEVICE Pair pair_seconds(Pair a, Pair b) { return {a.bits >> 16 | (b.bits & 0xffff0000u)}; }

template <class T>
struct Fragments {
    T a[4], b[2];
};

template <class T>
TBPTT_DEVICE void add_product(T& sum, T a, T b) {
    sum += a * b;
}
#ifdef TBPTT_EMULATED
TBPTT_DEVICE void add_product(float& sum, Pair a, Pair b) {
    const auto value = [](std::uint32_t bits) {
        float x;
        std::memcpy(&x, &bits, sizeof(x));
        return x;
    };
    sum += value(a.bits << 16) * value(b.bits << 16);
    sum += value(a.bits & 0xffff0000u) * value(b.bits & 0xffff0000u);
}
#endif

// Without tensor cores for the type: the values come from lane to lane. In the emulator the only way.
template <class Sum, class T>
TBPTT_DEVICE void multiply_by_lanes(Sum (&sum)[4], const T (&a)[4], const T (&b)[2]) {
#ifdef TBPTT_EMULATED
    const Fragments<T> mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const int g = lane_index() / 4, t = lane_index() % 4;
    emulator::exchange(mine, [&](auto of) {
        for (int k = 0; k < tile_depth; ++k) {
            const Fragments<T> row = of(4 * g + k % 4);
            const T left = of(4 * (2 * t) + k % 4).b[k / 4], right = of(4 * (2 * t + 1) + k % 4).b[k / 4];
            const T above = row.a[k / 4 * 2], below = row.a[k / 4 * 2 + 1];
            add_product(sum[0], above, left);
            add_product(sum[1], above, right);
            add_product(sum[2], below, left);
            add_product(sum[3], below, right);
        }
        return 0;
    });
#else
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int k = 0; k < tile_depth; ++k) {
        const T above = from_lane(a[k / 4 * 2], 4 * g + k % 4), below = from_lane(a[k / 4 * 2 + 1], 4 * g + k % 4);
        const T left = from_lane(b[k / 4], 8 * t + k % 4), right = from_lane(b[k / 4], 8 * t + 4 + k % 4);
        add_product(sum[0], above, left);
        add_product(sum[1], above, right);
        add_product(sum[2], below, left);
        add_product(sum[3], below, right);
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

// Operands that are TF32 numbers already. Here and below volatile: a compiler must not move what all lanes do together to where
// some of them need it.
TBPTT_DEVICE void multiply_tf32(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
#if !defined(TBPTT_EMULATED) && __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
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
            asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                         : "+d"(sum[2 * half]), "+d"(sum[2 * half + 1])
                         : "d"(a[2 * k + half]), "d"(b[k]));
#else
    multiply_by_lanes(sum, a, b);
#endif
}

// In float32, whatever is asked for. Chips without bfloat16 (before 8.0) never come here: the bindings refuse it.
template <bool Exact>
TBPTT_DEVICE void multiply_add(float (&sum)[4], const Pair (&a)[4], const Pair (&b)[2]) {
#ifdef TBPTT_EMULATED
    multiply_by_lanes(sum, a, b);
#elif __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0].bits), "r"(a[1].bits), "r"(a[2].bits), "r"(a[3].bits), "r"(b[0].bits), "r"(b[1].bits));
#else
    __trap();
#endif
}

// Only float32 has a faster product that is not exact: double asks for one kernel.
template <class T>
constexpr bool is_single = sizeof(T) == sizeof(float);

}  // namespace cuda
}  // namespace tbptt
