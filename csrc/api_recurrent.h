// The part of api.h that is about recurrent layers.
#pragma once

#include <cstdint>

#include "api_convolution.h"
#include "segments.h"

namespace tbptt {

enum class Cell { rnn_tanh, rnn_relu, gru, lstm };

struct RecurrentShape {
    Cell cell;
    std::int64_t steps, batch, inputs, hidden;  // T, B, I, H; T, B, H >= 1
};

// The layer's arguments, shared by both directions. G: gates of the cell.
template <class T>
struct RecurrentLayer {
    RecurrentShape shape;
    const T* x;                   // [T, B, I]
    const T* h0;                  // [B, H] or null (zeros)
    const T* c0;                  // [B, H] or null (zeros); LSTM only
    const T* w_ih;                // [G·H, I]
    const T* w_hh;                // [G·H, H]
    const T* b_ih;                // [G·H] or null
    const T* b_hh;                // [G·H] or null
    const std::uint8_t* is_init;  // [T, B] or null
};

// What the forward pass keeps for the backward pass.
template <class T>
struct RecurrentTape {
    T* h;      // [T, B, H]
    T* saved;  // [T, B, H] times the values that a cell keeps per unit, in the order of `SavedLayout` (cpu/recurrent.h)
};

template <class T>
struct RecurrentForward {
    RecurrentLayer<T> layer;
    const Segment* segments;  // forward_segments
    std::int64_t segment_count;
    T* out;                 // out = [T, B, H]
    T* c_n;                 // out = [B, H]; LSTM only. h_n is the last step of `out`.
    RecurrentTape<T> tape;  // out =; all null in inference
};

template <class T>
struct RecurrentBackward {
    RecurrentLayer<T> layer;
    RecurrentTape<T> tape;
    const Segment* segments;  // backward_segments
    std::int64_t segment_count;
    bool overlapping;      // k1 < k2: a step may belong to several segments
    const T* grad_out;     // [T, B, H] or null (zeros)
    const T* grad_h_n;     // [B, H] or null
    const T* grad_c_n;     // [B, H] or null; LSTM only
    const T* carry_scale;  // [T, B] or null
    T* grad_x;             // out = [T, B, I]
    T* grad_h0;            // out = [B, H]
    T* grad_c0;            // out = [B, H]; LSTM only
    T* grad_w_ih;          // out = [G·H, I]
    T* grad_w_hh;          // out = [G·H, H]
    T* grad_b_ih;          // out = [G·H] or null
    T* grad_b_hh;          // out = [G·H] or null
    // If not null, the norms of the gradients of all states by each loss are all that is written (with the sums below):
    // the windows must be (1, reach). norms[lag, t, b] is by the loss of step t for the state that left step t - lag;
    // places before step 0 or a reset are left alone, and so are those of losses that no segment has.
    T* lag_norms;      // out = [reach, T, B] or null
    double* lag_sums;  // out += [reach, states, H], those gradients' sums over all losses, or null
};

// A recurrent layer on images, whose products are convolutions: stride 1, and as many zeros around as keep the size. Images
// are [channels, Y, X] or, with `channels_last`, [Y, X, channels]; the shapes below are those of the first.
struct ConvRecurrentShape {
    Cell cell;
    std::int64_t steps, batch, inputs, hidden, height, width;                           // T, B, C, H, Y, X, all >= 1
    std::int64_t kernel_ih_height, kernel_ih_width, kernel_hh_height, kernel_hh_width;  // odd
    std::int64_t dilation_y, dilation_x;                                                // of both kernels
    bool channels_last;
    Algorithm algorithm;  // automatic or direct, of all convolutions
};

template <class T>
struct ConvRecurrentLayer {
    ConvRecurrentShape shape;
    const T* x;                   // [T, B, C, Y, X]
    const T* h0;                  // [B, H, Y, X] or null (zeros)
    const T* c0;                  // [B, H, Y, X] or null (zeros); LSTM only
    const T* w_ih;                // [G·H, C, kernel_ih_height, kernel_ih_width]
    const T* w_hh;                // [G·H, H, kernel_hh_height, kernel_hh_width]
    const T* b_ih;                // [G·H] or null
    const T* b_hh;                // [G·H] or null
    const T* peephole;            // [3, H], or with `peephole_maps` [3, H, Y, X], of i, f and o; or null; LSTM only
    bool peephole_maps;           // one peephole for each pixel
    const std::uint8_t* is_init;  // [T, B] or null
};

// What the forward pass keeps for the backward pass, beside its output; channels last. Without `maps` the backward pass makes
// them again from the states; then `beside` is null too, but for the LSTM.
template <class T>
struct ConvRecurrentTape {
    T* maps;    // [T, B, Y, X, G·H]: the gates; of a plain cell its h; or null
    T* beside;  // [T, B, Y, X, H]: c of the LSTM, the candidate's recurrent part of the GRU; or null
};

template <class T>
struct ConvRecurrentForward {
    ConvRecurrentLayer<T> layer;
    T* out;                     // out = [T, B, H, Y, X]
    T* c_n;                     // out = [B, H, Y, X]; LSTM only. h_n is the last step of `out`.
    ConvRecurrentTape<T> tape;  // out =; all null in inference
};

template <class T>
struct ConvRecurrentBackward {
    ConvRecurrentLayer<T> layer;  // its biases are read where gates are made again
    const T* out;                 // of the forward pass
    ConvRecurrentTape<T> tape;
    const Segment* segments;  // backward_segments
    std::int64_t segment_count;
    std::int64_t window;   // k1
    bool overlapping;      // k1 < k2: a step may belong to several segments
    const T* grad_out;     // like out, or null (zeros)
    const T* grad_h_n;     // [B, H, Y, X] or null
    const T* grad_c_n;     // [B, H, Y, X] or null; LSTM only
    const T* carry_scale;  // [T, B] or null
    T* grad_x;             // out = like x
    T* grad_h0;            // out = [B, H, Y, X]
    T* grad_c0;            // out = [B, H, Y, X]; LSTM only
    T* grad_w_ih;          // out = like w_ih
    T* grad_w_hh;          // out = like w_hh
    T* grad_b_ih;          // out = [G·H] or null
    T* grad_b_hh;          // out = [G·H] or null
    T* grad_peephole;      // out = like peephole, or null
};

}  // namespace tbptt
