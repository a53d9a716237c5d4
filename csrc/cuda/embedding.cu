// The embedding.
#include "embedding.h"

namespace tbptt {
namespace cuda {

void widen(const std::int32_t* from, std::int64_t* to, std::int64_t count, const Call& call) {
    launch(&widen_ids<std::int64_t>, grid_for(count), call.stream, WidenIds{from, to, count});
}

template void embedding_forward<float>(const EmbeddingForward<float>&, std::int64_t, const Call&);
template void embedding_forward<double>(const EmbeddingForward<double>&, std::int64_t, const Call&);
template void embedding_backward<float>(const EmbeddingBackward<float>&, const Call&);
template void embedding_backward<double>(const EmbeddingBackward<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
