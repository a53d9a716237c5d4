// bfloat16, the upper half of a float32, as arrays hold it and tensor cores take it. Arithmetic is float32's.
#pragma once

#include <cstdint>
#include <cstring>

#include "../cells/cell.h"

namespace tbptt {
namespace cuda {

struct Bfloat16 {
    std::uint16_t bits;

    Bfloat16() = default;

    // The nearest one, ties to even; NaN becomes 0x7fff.
    explicit TBPTT_CELL Bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
        std::uint32_t all;
        memcpy(&all, &x, sizeof(all));
        bits = x != x ? std::uint16_t{0x7fff} : static_cast<std::uint16_t>((all + 0x7fffu + (all >> 16 & 1u)) >> 16);
#endif
    }

    TBPTT_CELL operator float() const {
        const std::uint32_t all = std::uint32_t{bits} << 16;
        float x;
        memcpy(&x, &all, sizeof(x));
        return x;
    }
};

template <class T>
struct Arithmetic {
    using Real = T;
};
template <>
struct Arithmetic<Bfloat16> {
    using Real = float;
};

// What is computed in where arrays hold T: sums, states, cells.
template <class T>
using Real = typename Arithmetic<T>::Real;
template <class T>
constexpr bool is_narrow = sizeof(T) < sizeof(Real<T>);

}  // namespace cuda
}  // namespace tbptt
