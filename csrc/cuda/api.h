// What the bindings of the CUDA backend call. The parameters are those of the CPU's kernels (../api.h); their arrays lie in the
// memory of the current device. All checks were made by the bindings. Calls put their work on the stream and return.
#pragma once

#include "../api.h"
#include "bfloat16.h"
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

// lag_norms and lag_sums of the parameters, for so many lags. Both are written in full: norms are NaN before step 0, and zero
// before a reset and for losses without a gradient.
template <class T>
void lag_norms(const RecurrentBackward<T>& p, std::int64_t lags, const Call& call);

// `packed` is not read.
template <class T>
void convolution_forward(const ConvolutionForward<T>& p, const Call& call);

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p, const Call& call);

// `segments`, `window` and `overlapping` of the parameters are not read. The tape: maps [T, B, Y, X, G·H] and beside
// [T, B, Y, X, H]; a plain cell has no maps, as its h is the output.
template <class T>
void convrecurrent_forward(const ConvRecurrentForward<T>& p, const Call& call);

template <class T>
void convrecurrent_backward(const ConvRecurrentBackward<T>& p, Truncation truncation, const Call& call);

// The first argument's list lies on the host, and is read before the call returns; what it points at is on the device, as are
// norm and non_finite, which may be null.
template <class T>
void gradient_norm(const GradientNorm<T>& p, const Call& call);

// √(a² + b²): the norm over arrays of both types.
void combine_norms(const double* a, const double* b, double* norm, const Call& call);

// What a step does by a norm on the device: it multiplies gradients by min(1, max_norm / (norm + 1e-6)) beside their factor,
// and with a norm that is NaN leaves everything as it is. Without a norm, nothing.
struct ClipByNorm {
    const double* norm;  // or null
    double max_norm;     // infinity for none
};

template <class T>
void sgd_step(const SgdStep<T>& p, const ClipByNorm& clip, const Call& call);

template <class T>
void rmsprop_step(const RmspropStep<T>& p, const ClipByNorm& clip, const Call& call);

// Adam's number of the step, counted on the device: unless the norm is NaN, the step adds one to each counter, and takes its
// bias corrections from there, so that a graph that is replayed goes on counting.
struct StepCounters {
    void* const* counters;  // or null: the parameters' step_size and inverse_root hold. The list is on the host
    std::int64_t count;     // 1, for all arrays, or one for each
    bool floats;            // each is a float, not an int64
    double lr;
};

template <class T>
void adam_step(const AdamStep<T>& p, const StepCounters& counters, const ClipByNorm& clip, const Call& call);

// What the host cannot check without waiting for the device does no harm there and shows: a row whose target or id is no
// class gets NaN.

// Of all losses together. With `mean` they and their gradients are divided by the weights of what counts, which are added up
// on the device; then the parameters' divisor is not looked at.
struct Total {
    bool mean;
    double* loss;  // out = Σ losses / divisor
};

// The parameters' `loss` is not looked at; `each` [N] is, or null, out =.
template <class T>
void softmax_cross_entropy(const SoftmaxCrossEntropy<T>& p, T* each, const Total& total, const Call& call);

// The parameters' `sum` is not looked at.
template <class T>
void pointwise_loss(const PointwiseLoss<T>& p, const Total& total, const Call& call);

template <class T>
void softmax_forward(const SoftmaxForward<T>& p, const Call& call);

template <class T>
void softmax_backward(const SoftmaxBackward<T>& p, const Call& call);

// Fewer than 2^31 rows, and at most 2^20 inputs and outputs.
template <class T>
void linear_forward(const LinearForward<T>& p, const Call& call);

template <class T>
void linear_backward(const LinearBackward<T>& p, const Call& call);

// Of each element; `to` may be `from`.
template <class T>
void exponentials(std::int64_t count, const T* from, T* to, const Call& call);

template <class T>
void activations(Activation activation, std::int64_t count, const T* from, T* to, const Call& call);

template <class T>
void activation_backward(const ActivationBackward<T>& p, const Call& call);

// Planes (`inner` of the shape) of fewer than 2^31 values.
template <class T>
void batch_norm_forward(const BatchNormForward<T>& p, const Call& call);

template <class T>
void batch_norm_backward(const BatchNormBackward<T>& p, const Call& call);

template <class T>
void layer_norm_forward(const LayerNormForward<T>& p, const Call& call);

template <class T>
void layer_norm_backward(const LayerNormBackward<T>& p, const Call& call);

template <class T>
void dropout(const Dropout<T>& p, const Call& call);

// Fewer than 2^31 values in a plane or, with channels last, in an image, of inputs and of outputs.
template <class T>
void max_pool_forward(const MaxPoolForward<T>& p, const Call& call);

// The parameters know planes as rows of `plane_width` and of `window_width`. `outside` is on the device; where an index is
// outside, all gradients are NaN.
template <class T>
void max_pool_backward(const MaxPoolBackward<T>& p, std::int64_t plane_width, std::int64_t window_width,
                       const Call& call);

template <class T>
void avg_pool_forward(const AvgPoolForward<T>& p, const Call& call);

template <class T>
void avg_pool_backward(const AvgPoolBackward<T>& p, const Call& call);

template <class T>
void global_avg_pool(const GlobalAvgPool<T>& p, const Call& call);

void widen(const std::int32_t* from, std::int64_t* to, std::int64_t count, const Call& call);

// Rows of fewer than 2^31 values; `embeddings` is V, for the check.
template <class T>
void embedding_forward(const EmbeddingForward<T>& p, std::int64_t embeddings, const Call& call);

// At most 2^31 - 4096 rows, so that places behind the last one are numbers, too. An id outside makes all of grad_w NaN.
template <class T>
void embedding_backward(const EmbeddingBackward<T>& p, const Call& call);

}  // namespace cuda
}  // namespace tbptt
