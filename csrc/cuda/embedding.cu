// The embedding.
#include "embedding.h"

namespace tbptt {
namespace cuda {

template void embedding_forward<float>(const EmbeddingForward<float>&, std::int64_t, const Call&);
template void embedding_forward<double>(const EmbeddingForward<double>&, std::int64_t, const Call&);
template void embedding_backward<float>(const EmbeddingBackward<float>&, const Call&);
template void embedding_backward<double>(const EmbeddingBackward<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
