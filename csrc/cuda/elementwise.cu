// Elementwise functions, and dropout.
#include "dropout.h"
#include "elementwise.h"

namespace tbptt {
namespace cuda {

template void exponentials(std::int64_t, const float*, float*, const Call&);
template void exponentials(std::int64_t, const double*, double*, const Call&);
template void activations(Activation, std::int64_t, const float*, float*, const Call&);
template void activations(Activation, std::int64_t, const double*, double*, const Call&);
template void activation_backward(const ActivationBackward<float>&, const Call&);
template void activation_backward(const ActivationBackward<double>&, const Call&);
template void dropout(const Dropout<float>&, const Call&);
template void dropout(const Dropout<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
