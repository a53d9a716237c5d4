// The recurrent layers in bfloat16: a unit of its own, compiled beside the others.
#include "recurrent_entry.h"

namespace tbptt {
namespace cuda {

template void recurrent_forward(const RecurrentForward<Bfloat16>&, const Call&);
template void recurrent_backward(const RecurrentBackward<Bfloat16>&, Truncation, const Call&);

}  // namespace cuda
}  // namespace tbptt
