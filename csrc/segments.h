// Segments: the central idea of the library.
//
// Truncation and resets cut the sequence of every batch row into independent pieces. All pieces, of all rows and all
// windows, are rows of one *batch*: a kernel runs them side by side, so its sequential depth is the longest piece, not
// the number of steps. Segments are sorted by length, longest first: after j steps the live ones are a prefix.
#pragma once

#include <cstdint>
#include <vector>

namespace tbptt {

struct Segment {
    std::int32_t batch;        // row of the batch
    std::int32_t origin;       // forward: the first step; backward: the last step, where the backward walk begins
    std::int32_t length;       // steps to walk; backward: one more when the walk goes on into the initial state
    std::int32_t inject_from;  // backward: losses of the steps origin … inject_from enter; forward: unused
};

struct Truncation {
    std::int64_t k1, k2;  // losses per window, reach of a window; full BPTT is (steps, steps)
};

// Forward: cut before each step where is_init[t, b] is set (is_init may be null).
std::vector<Segment> forward_segments(std::int64_t steps, std::int64_t batch, const std::uint8_t* is_init);

// Backward: windows of `truncation` (DESIGN §4), each cut where the carry from step t to t-1 is stopped: by is_init[t, b]
// or by carry_scale[t, b] == 0 (either may be null). Pieces that no loss reaches are left out.
template <class T>
std::vector<Segment> backward_segments(std::int64_t steps, std::int64_t batch, Truncation truncation,
                                       const std::uint8_t* is_init, const T* carry_scale);

}  // namespace tbptt
