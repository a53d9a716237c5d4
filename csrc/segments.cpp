// Cutting sequences into segments; see segments.h.
#include "segments.h"

#include <algorithm>

namespace tbptt {

namespace {

std::vector<Segment> longest_first(std::vector<Segment> segments) {
    std::stable_sort(segments.begin(), segments.end(),
                     [](const Segment& a, const Segment& b) { return a.length > b.length; });
    return segments;
}

Segment make_segment(std::int64_t batch, std::int64_t origin, std::int64_t length, std::int64_t inject_from) {
    const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    return {narrow(batch), narrow(origin), narrow(length), narrow(inject_from)};
}

}  // namespace

std::vector<Segment> forward_segments(std::int64_t steps, std::int64_t batch, const std::uint8_t* is_init) {
    std::vector<Segment> segments;
    if (steps == 0) return segments;
    for (std::int64_t b = 0; b < batch; ++b) {
        std::int64_t first = 0;
        for (std::int64_t t = 1; is_init && t < steps; ++t)
            if (is_init[t * batch + b]) {
                segments.push_back(make_segment(b, first, t - first, 0));
                first = t;
            }
        segments.push_back(make_segment(b, first, steps - first, 0));
    }
    return longest_first(std::move(segments));
}

template <class T>
std::vector<Segment> backward_segments(std::int64_t steps, std::int64_t batch, Truncation truncation,
                                       const std::uint8_t* is_init, const T* carry_scale) {
    const auto [k1, k2] = truncation;
    const auto carry_stops = [&](std::int64_t t, std::int64_t b) {
        return (is_init && is_init[t * batch + b]) || (carry_scale && carry_scale[t * batch + b] == T(0));
    };
    std::vector<Segment> segments;
    for (std::int64_t losses = 0; losses < steps; losses += k1) {  // the window's first loss
        const std::int64_t end = std::min(losses + k1, steps);
        const std::int64_t reach = std::max<std::int64_t>(0, losses + k1 - k2);  // the window's first cell
        for (std::int64_t b = 0; b < batch; ++b) {
            std::int64_t last = end - 1;
            while (last >= losses) {
                std::int64_t first = last;
                while (first > reach && !carry_stops(first, b)) --first;
                const bool into_initial_state = first == 0 && !carry_stops(0, b);
                segments.push_back(make_segment(b, last, last - first + 1 + into_initial_state, losses));
                last = first - 1;
            }
        }
    }
    return longest_first(std::move(segments));
}

template std::vector<Segment> backward_segments(std::int64_t, std::int64_t, Truncation, const std::uint8_t*,
                                                const float*);
template std::vector<Segment> backward_segments(std::int64_t, std::int64_t, Truncation, const std::uint8_t*,
                                                const double*);

}  // namespace tbptt
