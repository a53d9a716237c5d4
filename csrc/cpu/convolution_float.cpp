// Instantiates the convolutions for float.
#include "convolution.h"

namespace tbptt {
namespace TBPTT_ISA {
template bool has_faster_way<float>(const ConvolutionShape&);
template Algorithm way_of<float>(const ConvolutionShape&);
template void convolution_forward<float>(const ConvolutionForward<float>&);
template void convolution_backward<float>(const ConvolutionBackward<float>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
