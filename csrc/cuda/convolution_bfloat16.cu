// The convolutions in bfloat16: a unit of its own, compiled beside the others.
#include "convolution_entry.h"

namespace tbptt {
namespace cuda {

template void convolution_forward(const ConvolutionForward<Bfloat16>&, const Call&);
template void convolution_backward(const ConvolutionBackward<Bfloat16>&, const Call&);
template class PackedConvolution<Bfloat16>;

}  // namespace cuda
}  // namespace tbptt
