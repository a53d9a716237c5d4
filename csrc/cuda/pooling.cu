// Pooling.
#include "max_pool_gradient.h"
#include "pooling.h"

namespace tbptt {
namespace cuda {

template void max_pool_forward<float>(const MaxPoolForward<float>&, const Call&);
template void max_pool_forward<double>(const MaxPoolForward<double>&, const Call&);
template void max_pool_backward<float>(const MaxPoolBackward<float>&, std::int64_t, std::int64_t, const Call&);
template void max_pool_backward<double>(const MaxPoolBackward<double>&, std::int64_t, std::int64_t, const Call&);
template void avg_pool_forward<float>(const AvgPoolForward<float>&, const Call&);
template void avg_pool_forward<double>(const AvgPoolForward<double>&, const Call&);
template void avg_pool_backward<float>(const AvgPoolBackward<float>&, const Call&);
template void avg_pool_backward<double>(const AvgPoolBackward<double>&, const Call&);
template void global_avg_pool<float>(const GlobalAvgPool<float>&, const Call&);
template void global_avg_pool<double>(const GlobalAvgPool<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
