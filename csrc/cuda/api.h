// What the bindings of the CUDA backend call. The parameters are those of the CPU's kernels (../api.h); their arrays lie in the
// memory of the current device. All checks were made by the bindings. Calls put their work on the stream and return.
#pragma once

#include "../api_convolution.h"
#include "../api_recurrent.h"
#include "runtime.h"

namespace tbptt {
namespace cuda {

// How many values the tape keeps beside the output, for each of T·B·H.
std::int64_t tape_values(Cell cell);

// `segments` of the parameters are not read: they are found on the device, where is_init and carry_scale lie.
// The tape: h is `out`, saved [T, B, tape_values, H].
template <class T>
void recurrent_forward(const RecurrentForward<T>& p, const Call& call);

template <class T>
void recurrent_backward(const RecurrentBackward<T>& p, Truncation truncation, const Call& call);

// `packed` is not read.
template <class T>
void convolution_forward(const ConvolutionForward<T>& p, const Call& call);

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p, const Call& call);

}  // namespace cuda
}  // namespace tbptt
