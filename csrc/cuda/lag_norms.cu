// Norms by lag: a unit of its own, compiled beside the layers.
#include "recurrent_entry.h"

namespace tbptt {
namespace cuda {

template void lag_norms(const RecurrentBackward<float>&, std::int64_t, const Call&);
template void lag_norms(const RecurrentBackward<double>&, std::int64_t, const Call&);
template void lag_norms(const RecurrentBackward<Bfloat16>&, std::int64_t, const Call&);

}  // namespace cuda
}  // namespace tbptt
