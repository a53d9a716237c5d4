// Instantiates the recurrent kernels for float.
#include "recurrent_entry.h"

namespace tbptt {
namespace TBPTT_ISA {
template void recurrent_forward<float>(const RecurrentForward<float>&);
template void recurrent_backward<float>(const RecurrentBackward<float>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
