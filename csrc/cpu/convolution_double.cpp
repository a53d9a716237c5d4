// Instantiates the convolutions for double.
#include "convolution.h"

namespace tbptt {
namespace TBPTT_ISA {
template bool has_faster_way<double>(const ConvolutionShape&);
template Algorithm way_of<double>(const ConvolutionShape&);
template void convolution_forward<double>(const ConvolutionForward<double>&);
template void convolution_backward<double>(const ConvolutionBackward<double>&);
}  // namespace TBPTT_ISA
}  // namespace tbptt
