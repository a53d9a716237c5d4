// Where a target channel does not meet just the source channel of its own number, the source's channels are spread over the
// lanes of the target in scratch memory: what follows is depthwise again.
#pragma once

#include "depthwise_walk.h"
#include "intrinsics.h"

namespace tbptt {
namespace TBPTT_ISA {

// The d-th source channel of every lane of a vector of target channels.
template <class T>
class SpreadLanes {
   public:
    SpreadLanes() = default;
    SpreadLanes(const Channels& channels, int64_t target, int64_t d) : available_(channels.source()) {
        const auto source = [&](int64_t lane) {
            const int64_t channel = smaller(target + lane, channels.target() - 1);
            return channel / channels.columns * channels.depth + d;
        };
        first_ = source(0);
        for (int i = 0; i < lanes<T>; ++i) index_[i] = static_cast<Lane>(source(i) - first_);
        vectors_ = (source(lanes<T> - 1) - first_) / lanes<T> + 1;
    }

    TBPTT_INLINE Vec<T> operator()(const T* pixel) const {
        Vec<T> result = pick_lanes(load_partial(pixel + first_, available_ - first_), index_ & (lanes<T> - 1));
        for (int64_t k = 1; k < vectors_; ++k) {
            const int64_t at = first_ + k * lanes<T>;
            const Vec<T> more = pick_lanes(load_partial(pixel + at, available_ - at), index_ & (lanes<T> - 1));
            result = index_ >= static_cast<Lane>(k * lanes<T>) ? more : result;
        }
        return result;
    }

   private:
    using Lane = std::remove_reference_t<decltype(VecBits<T>{}[0])>;
    VecBits<T> index_;  // from first_ on
    int64_t available_, first_, vectors_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
