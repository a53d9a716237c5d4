// Instantiates the convolutional recurrent kernels for double.
#include "convrecurrent_backward.h"
#include "convrecurrent_forward.h"

namespace tbptt {
namespace TBPTT_ISA {
template void convrecurrent_forward<double>(const ConvRecurrentForward<double>&);
template void convrecurrent_backward<double>(const ConvRecurrentBackward<double>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
