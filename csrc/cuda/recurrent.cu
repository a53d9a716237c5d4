// The recurrent layers in float32 and float64, which share what does not depend on the type.
#include "recurrent_entry.h"

namespace tbptt {
namespace cuda {

std::int64_t tape_values(Cell cell) {
    return with_cell(cell, [](auto of) -> std::int64_t { return decltype(of)::shape.kept(); });
}

template void recurrent_forward(const RecurrentForward<float>&, const Call&);
template void recurrent_forward(const RecurrentForward<double>&, const Call&);
template void recurrent_backward(const RecurrentBackward<float>&, Truncation, const Call&);
template void recurrent_backward(const RecurrentBackward<double>&, Truncation, const Call&);

}  // namespace cuda
}  // namespace tbptt
