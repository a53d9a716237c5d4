// Losses and softmax.
#include "loss.h"

namespace tbptt {
namespace cuda {

template void softmax_cross_entropy<float>(const SoftmaxCrossEntropy<float>&, float*, const Total&, const Call&);
template void softmax_cross_entropy<double>(const SoftmaxCrossEntropy<double>&, double*, const Total&, const Call&);
template void pointwise_loss<float>(const PointwiseLoss<float>&, const Total&, const Call&);
template void pointwise_loss<double>(const PointwiseLoss<double>&, const Total&, const Call&);
template void softmax_forward<float>(const SoftmaxForward<float>&, const Call&);
template void softmax_forward<double>(const SoftmaxForward<double>&, const Call&);
template void softmax_backward<float>(const SoftmaxBackward<float>&, const Call&);
template void softmax_backward<double>(const SoftmaxBackward<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
