// The linear layer.
#include "linear.h"

namespace tbptt {
namespace cuda {

template void linear_forward(const LinearForward<float>&, const Call&);
template void linear_forward(const LinearForward<double>&, const Call&);
template void linear_backward(const LinearBackward<float>&, const Call&);
template void linear_backward(const LinearBackward<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
