// Sixteen bytes of an array at once, and division by what the host knows.
#pragma once

#include "../cells/cell.h"
#include "device.h"

namespace tbptt {
namespace cuda {

template <class T, int count>
struct alignas(count * sizeof(T)) Vector {
    T value[count];
};

// How many values one load takes from arrays that allow it.
template <class T>
constexpr int vector_values = 16 / static_cast<int>(sizeof(T));

template <int count, class T>
TBPTT_DEVICE Vector<T, count> load_vector(const T* from) {
    return *reinterpret_cast<const Vector<T, count>*>(from);
}

template <int count, class T>
TBPTT_DEVICE void store_vector(T* to, const Vector<T, count>& values) {
    *reinterpret_cast<Vector<T, count>*>(to) = values;
}

template <class... P>
TBPTT_CELL bool all_aligned(const P*... pointers) {
    return ((reinterpret_cast<std::uintptr_t>(pointers) | ... | std::uintptr_t{0}) % 16) == 0;
}

template <int n>
struct Constant {
    static constexpr int value = n;
};

// n / divisor for n below 2^32, divisor in [1, 2^31], without a division (Granlund & Montgomery 1994).
struct Divider {
    std::uint32_t divisor, multiplier;
    int shift;
    double reciprocal;

    explicit Divider(std::int64_t d)
        : divisor(static_cast<std::uint32_t>(d)), shift(0), reciprocal(1 / static_cast<double>(d)) {
        while ((std::int64_t{1} << shift) < d) ++shift;
        const std::uint64_t rest = (std::uint64_t{1} << shift) - static_cast<std::uint64_t>(d);
        multiplier = static_cast<std::uint32_t>((rest << 32) / static_cast<std::uint64_t>(d) + 1);
    }

    TBPTT_DEVICE std::uint32_t quotient(std::uint32_t n) const {
        const std::uint64_t high = std::uint64_t{n} * multiplier >> 32;
        return static_cast<std::uint32_t>((high + n) >> shift);
    }

    // The same for n below 2^53: the product is off by less than one.
    TBPTT_DEVICE std::int64_t long_quotient(std::int64_t n) const {
        const auto near = static_cast<std::int64_t>(static_cast<double>(n) * reciprocal);
        const std::int64_t rest = n - near * divisor;
        return near + (rest >= std::int64_t{divisor}) - (rest < 0);
    }
};

// Where the items of a block are among rows of `length`: a long quotient for the block, short ones for each item.
struct Place {
    std::int64_t row;
    std::uint32_t column;
};

class Places {
   public:
    TBPTT_DEVICE Places(std::int64_t first, const Divider& length)
        : length_(length),
          row_(length.long_quotient(first)),
          column_(static_cast<std::uint32_t>(first - row_ * length.divisor)) {}

    // Of the item `offset` behind the first; both below 2^31.
    TBPTT_DEVICE Place operator[](std::uint32_t offset) const {
        const std::uint32_t behind = column_ + offset, rows = length_.quotient(behind);
        return {row_ + rows, behind - rows * length_.divisor};
    }

   private:
    const Divider& length_;
    std::int64_t row_;
    std::uint32_t column_;
};

}  // namespace cuda
}  // namespace tbptt
