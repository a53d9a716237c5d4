// Instantiates the convolutional recurrent kernels for float.
#include "convrecurrent_backward.h"
#include "convrecurrent_forward.h"

namespace tbptt {
namespace TBPTT_ISA {
template void convrecurrent_forward<float>(const ConvRecurrentForward<float>&);
template void convrecurrent_backward<float>(const ConvRecurrentBackward<float>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
