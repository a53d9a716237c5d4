// The optimizers.
#include "optimizer.h"

namespace tbptt {
namespace cuda {

void combine_norms(const double* a, const double* b, double* norm, const Call& call) {
    Grid grid;
    grid.threads = 32;
    launch(&combine<double>, grid, call.stream, TwoNorms<double>{a, b, norm});
}

template void gradient_norm<float>(const GradientNorm<float>&, const Call&);
template void gradient_norm<double>(const GradientNorm<double>&, const Call&);
template void sgd_step<float>(const SgdStep<float>&, const ClipByNorm&, const Call&);
template void sgd_step<double>(const SgdStep<double>&, const ClipByNorm&, const Call&);
template void rmsprop_step<float>(const RmspropStep<float>&, const ClipByNorm&, const Call&);
template void rmsprop_step<double>(const RmspropStep<double>&, const ClipByNorm&, const Call&);
template void adam_step<float>(const AdamStep<float>&, const StepCounters&, const ClipByNorm&, const Call&);
template void adam_step<double>(const AdamStep<double>&, const StepCounters&, const ClipByNorm&, const Call&);

}  // namespace cuda
}  // namespace tbptt
