// Instantiates the recurrent kernels for double.
#include "recurrent_entry.h"

namespace tbptt {
namespace TBPTT_ISA {
template void recurrent_forward<double>(const RecurrentForward<double>&);
template void recurrent_backward<double>(const RecurrentBackward<double>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
