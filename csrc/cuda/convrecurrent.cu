// The recurrent layers on images, in every type: their products are the convolutions' units.
#include "convrecurrent_backward.h"
#include "convrecurrent_forward.h"

namespace tbptt {
namespace cuda {

template <class T>
void convrecurrent_forward(const ConvRecurrentForward<T>& p, const Call& call) {
    ConvForwardPass<T>(p, call).run();
}

template <class T>
void convrecurrent_backward(const ConvRecurrentBackward<T>& p, Truncation truncation, const Call& call) {
    ConvBackwardPass<T>(p, truncation, call).run();
}

template void convrecurrent_forward(const ConvRecurrentForward<float>&, const Call&);
template void convrecurrent_forward(const ConvRecurrentForward<double>&, const Call&);
template void convrecurrent_forward(const ConvRecurrentForward<Bfloat16>&, const Call&);
template void convrecurrent_backward(const ConvRecurrentBackward<float>&, Truncation, const Call&);
template void convrecurrent_backward(const ConvRecurrentBackward<double>&, Truncation, const Call&);
template void convrecurrent_backward(const ConvRecurrentBackward<Bfloat16>&, Truncation, const Call&);

}  // namespace cuda
}  // namespace tbptt
