// Convolution and its transpose in float32 and float64.
#include "convolution_entry.h"

namespace tbptt {
namespace cuda {

template void convolution_forward(const ConvolutionForward<float>&, const Call&);
template void convolution_forward(const ConvolutionForward<double>&, const Call&);
template void convolution_backward(const ConvolutionBackward<float>&, const Call&);
template void convolution_backward(const ConvolutionBackward<double>&, const Call&);
template class PackedConvolution<float>;
template class PackedConvolution<double>;

}  // namespace cuda
}  // namespace tbptt
