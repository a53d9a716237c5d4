// Batch and layer normalization.
#include "batch_norm.h"
#include "layer_norm.h"

namespace tbptt {
namespace cuda {

template void batch_norm_forward(const BatchNormForward<float>&, const Call&);
template void batch_norm_forward(const BatchNormForward<double>&, const Call&);
template void batch_norm_backward(const BatchNormBackward<float>&, const Call&);
template void batch_norm_backward(const BatchNormBackward<double>&, const Call&);
template void layer_norm_forward(const LayerNormForward<float>&, const Call&);
template void layer_norm_forward(const LayerNormForward<double>&, const Call&);
template void layer_norm_backward(const LayerNormBackward<float>&, const Call&);
template void layer_norm_backward(const LayerNormBackward<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
