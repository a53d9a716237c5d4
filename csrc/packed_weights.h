// Weights that many calls share, kept in the forms in which kernels want them; each form is made by the first call that
// asks for it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tbptt {

// What tells one form of the same weights from another.
struct WeightForm {
    std::int64_t kernel;          // of the kernels that pack weights, which
    std::int64_t lanes, vectors;  // of a panel
    std::int64_t groups, depth, columns;
    std::uint64_t elements;  // a hash of the order in which the kernel's elements are taken, and of their strides
};

class PackedWeights;

PackedWeights* make_packed_weights();
void destroy_packed_weights(PackedWeights* weights) noexcept;
std::size_t size_in_bytes(const PackedWeights& weights);  // of all forms

struct ClaimedForm {
    void* data;   // null where another call is filling it just now: then pack for yourself
    bool filled;  // else the caller fills it, and gives it back
};
// Any thread may ask. Throws std::bad_alloc.
ClaimedForm claim(PackedWeights& weights, const WeightForm& form, std::size_t bytes);
void give_back(PackedWeights& weights, const WeightForm& form, bool filled) noexcept;

}  // namespace tbptt
