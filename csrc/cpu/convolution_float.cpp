// Instantiates the convolutions for float.
#include "convolution.h"

namespace tbptt {
namespace TBPTT_ISA {
template void convolution_forward<float>(const ConvolutionForward<float>&);
template void convolution_backward<float>(const ConvolutionBackward<float>&);
template void transposed_forward<float>(const TransposedForward<float>&);
template void transposed_backward<float>(const TransposedBackward<float>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
