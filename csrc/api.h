// The contract between the bindings and the kernels: one parameter struct per op and direction, and the table of
// functions that each instruction set fills.
//
// All arrays are C-contiguous, aligned to their element, and do not overlap unless said otherwise. A pointer is an input
// unless marked out; `out =` is written, `out +=` is added to. "or null" says that it may be missing. The kernels check
// nothing: the bindings have (bindings/check.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "api_convolution.h"
#include "api_recurrent.h"

namespace tbptt {

template <class T>
struct LinearForward {
    std::int64_t rows, inputs, outputs;
    Activation activation;
    const T* x;  // [rows, inputs]
    const T* w;  // [outputs, inputs]
    const T* b;  // [outputs] or null
    T* y;        // out = [rows, outputs]
};

template <class T>
struct LinearBackward {
    std::int64_t rows, inputs, outputs;
    Activation activation;
    const T* grad_y;  // [rows, outputs]
    const T* x;       // [rows, inputs]
    const T* w;       // [outputs, inputs]
    const T* y;       // [rows, outputs]; null without activation
    T* grad_x;        // out = [rows, inputs] or null
    T* grad_w;        // out = [outputs, inputs] or null
    T* grad_b;        // out = [outputs] or null
};

template <class T>
struct EmbeddingForward {
    std::int64_t rows, width;  // N, D
    const std::int64_t* ids;   // [N], each in [0, V)
    const T* w;                // [V, D]
    T* y;                      // out = [N, D]
};

template <class T>
struct EmbeddingBackward {
    std::int64_t rows, embeddings, width;  // N, V, D
    const std::int64_t* ids;               // [N], each in [0, V)
    const T* grad_y;                       // [N, D]
    T* grad_w;                             // out = [V, D]
};

template <class T>
struct SoftmaxCrossEntropy {
    std::int64_t rows, classes;   // N, C; C >= 1
    std::int64_t ignore_index;    // rows with this target have neither loss nor gradient
    double divisor;               // of the gradient; the losses are not divided
    const T* logits;              // [N, C]
    const std::int64_t* targets;  // [N], each in [0, C) or ignore_index
    const T* weights;             // [N] or null (ones)
    double* loss;                 // out = [N]
    T* grad_logits;               // out = [N, C]
};

enum class Loss { squared, absolute, huber, hinge };

// Losses that look at every value by itself.
template <class T>
struct PointwiseLoss {
    Loss kind;
    double delta;                // Huber: where it turns from a square into a line, > 0
    std::int64_t rows, columns;  // N, D
    double divisor;              // of the gradient; the losses are not divided
    const T* prediction;         // [N, D]
    const T* target;             // [N, D]; hinge: each -1 or 1
    const T* weights;            // [N] or null (ones)
    T* loss;                     // out = [N, D] or null
    T* grad_prediction;          // out = [N, D]
    double* sum;                 // out = the sum of the losses
};

template <class T>
struct OptimizerArray {
    std::int64_t count;
    T* param;       // out +=
    const T* grad;  // may be `param`
    T* first;       // out: state of the optimizer, see each step; null where unused
    T* second;      // out: the same
    T* third;       // out: the same
};

// All parameters of a network, and what is done to their gradients: clipped to ±clip_value, then multiplied by `factor`,
// which is negative to maximize.
template <class T>
struct Parameters {
    const OptimizerArray<T>* arrays;
    std::int64_t count;
    double clip_value;  // infinity for none
    double factor;
};

template <class T>
struct GradientNorm {
    Parameters<T> list;        // only counts, gradients and clip_value are looked at
    double* norm;              // out = √Σ g² after clipping by value; NaN when an element is not finite before it
    std::int64_t* non_finite;  // out = the first array with such an element, or -1
};

template <class T>
struct SgdStep {
    Parameters<T> list;  // first: momentum, used when mu > 0
    double lr, mu, weight_decay;
    double grad_share;  // momentum = mu · momentum + grad_share · grad
    bool nesterov;
};

template <class T>
struct RmspropStep {
    // first: average of squares; second: momentum, used when mu > 0; third: average of gradients, used when centered
    Parameters<T> list;
    double lr, alpha, eps, mu, weight_decay;
    bool centered;
};

template <class T>
struct AdamStep {
    // first: average of gradients; second: average of squares; third: its maximum so far, used with amsgrad
    Parameters<T> list;
    double step_size;     // lr / (1 - beta1^t)
    double inverse_root;  // 1 / √(1 - beta2^t)
    double beta1, beta2, eps;
    double grad_decay;  // grad += grad_decay · param
    double param_keep;  // param *= param_keep, before the step
    bool amsgrad;
};

// x [outer, channels, inner]: NCHW has inner = H·W, NHWC and [N, C] have inner = 1.
struct ChannelShape {
    std::int64_t outer, channels, inner;
};

template <class T>
struct BatchNormForward {
    ChannelShape shape;  // training: outer · inner >= 2
    bool training;       // the statistics of x normalize it, else the running ones
    double momentum, eps;
    const T* x;             // [outer, C, inner]
    const T* weight;        // [C] or null (ones)
    const T* bias;          // [C] or null (zeros)
    const T* running_mean;  // [C]; or null, with the next, when training
    const T* running_var;   // [C] or null
    T* y;                   // out = [outer, C, inner]
    double* mean;           // out = [C]
    double* inv_std;        // out = [C], 1 / √(variance + eps)
    T* new_running_mean;    // out = [C] or null; training only
    T* new_running_var;     // out = [C] or null; training only
};

template <class T>
struct BatchNormBackward {
    ChannelShape shape;
    bool training;          // mean and inv_std depend on x
    const T* grad_y;        // [outer, C, inner]
    const T* x;             // [outer, C, inner]
    const T* weight;        // [C] or null (ones)
    const double* mean;     // [C]
    const double* inv_std;  // [C]
    T* grad_x;              // out = [outer, C, inner] or null
    T* grad_w;              // out = [C] or null
    T* grad_b;              // out = [C] or null
};

template <class T>
struct LayerNormForward {
    std::int64_t rows, columns;  // N, D; D >= 1
    double eps;
    const T* x;       // [N, D]
    const T* weight;  // [D] or null (ones)
    const T* bias;    // [D] or null (zeros)
    T* y;             // out = [N, D]
    double* mean;     // out = [N]
    double* inv_std;  // out = [N], 1 / √(variance + eps)
};

template <class T>
struct LayerNormBackward {
    std::int64_t rows, columns;  // N, D; D >= 1
    const T* grad_y;             // [N, D]
    const T* x;                  // [N, D]
    const T* weight;             // [D] or null (ones)
    const double* mean;          // [N]
    const double* inv_std;       // [N]
    T* grad_x;                   // out = [N, D] or null
    T* grad_w;                   // out = [D] or null
    T* grad_b;                   // out = [D] or null
};

template <class T>
struct Dropout {
    std::int64_t count;
    double p;           // of dropping an element, in [0, 1)
    std::uint64_t key;  // with an element's index it decides
    const T* x;         // [count]
    T* y;               // out = [count]
};

// Windows of kernel_y·kernel_x values on planes of size_y·size_x. Window i of an axis begins at i·stride - before, and holds
// at least one value of the plane; the plane is surrounded by padding, `before` and `behind` < kernel, and nothing is
// counted beyond it, where the last window may reach. All sizes are at least 1, but for batch and channels. Arrays are
// [N, C, Y, X] or, with `channels_last`, [N, Y, X, C].
struct PoolAxis {
    std::int64_t size, kernel, stride, before, behind, out;
};

struct PoolShape {
    std::int64_t batch, channels;
    PoolAxis y, x;
    bool channels_last;
};

template <class T>
struct MaxPoolForward {
    PoolShape shape;        // y.size · x.size is a value of the integer as wide as T
    const T* x;             // the planes
    T* y;                   // out = the windows
    std::int64_t* indices;  // out = like y; the place y.size · … + x of each maximum in its plane
};

// The one thing that a kernel checks: to read the indices twice would cost a quarter of the time.
template <class T>
struct MaxPoolBackward {
    std::int64_t batch, channels, plane, windows;  // plane: values of one plane of x, windows: those of y
    bool channels_last;
    const T* grad_y;              // the windows
    const std::int64_t* indices;  // like grad_y
    T* grad_x;                    // out = the planes
    bool* outside;                // out = whether an index is not in [0, plane); grad_x is then undefined
};

template <class T>
struct AvgPoolForward {
    PoolShape shape;
    bool count_padding;  // padding counts as zeros
    const T* x;          // the planes
    T* y;                // out = the windows
};

template <class T>
struct AvgPoolBackward {
    PoolShape shape;
    bool count_padding;
    const T* grad_y;  // the windows
    T* grad_x;        // out = the planes
};

template <class T>
struct GlobalAvgPool {
    std::int64_t batch, channels, plane;  // plane >= 1
    bool channels_last;
    const T* x;  // [N, C, plane] or [N, plane, C]
    T* y;        // out = [N, C]
};

template <class T>
struct SoftmaxForward {
    std::int64_t rows, columns;  // N, C; C >= 1
    const T* x;                  // [N, C]
    T* y;                        // out = [N, C]
};

template <class T>
struct SoftmaxBackward {
    std::int64_t rows, columns;  // N, C; C >= 1
    const T* grad_y;             // [N, C]
    const T* y;                  // [N, C]
    T* grad_x;                   // out = [N, C]
};

template <class T>
struct ActivationBackward {
    std::int64_t count;
    Activation activation;
    const T* grad_y;  // [count]
    const T* y;       // [count]
    T* grad_x;        // out = [count]
};

template <class T>
struct Kernels {
    void (*recurrent_forward)(const RecurrentForward<T>&);
    void (*recurrent_backward)(const RecurrentBackward<T>&);
    void (*convrecurrent_forward)(const ConvRecurrentForward<T>&);
    void (*convrecurrent_backward)(const ConvRecurrentBackward<T>&);
    void (*linear_forward)(const LinearForward<T>&);
    void (*linear_backward)(const LinearBackward<T>&);
    void (*convolution_forward)(const ConvolutionForward<T>&);
    void (*convolution_backward)(const ConvolutionBackward<T>&);
    void (*embedding_forward)(const EmbeddingForward<T>&);
    void (*embedding_backward)(const EmbeddingBackward<T>&);
    void (*softmax_cross_entropy)(const SoftmaxCrossEntropy<T>&);
    void (*pointwise_loss)(const PointwiseLoss<T>&);
    void (*gradient_norm)(const GradientNorm<T>&);
    void (*sgd_step)(const SgdStep<T>&);
    void (*rmsprop_step)(const RmspropStep<T>&);
    void (*adam_step)(const AdamStep<T>&);
    // to [count] = f(from [count]); in place is allowed
    void (*exp)(std::int64_t count, const T* from, T* to);
    void (*tanh)(std::int64_t count, const T* from, T* to);
    void (*sigmoid)(std::int64_t count, const T* from, T* to);
    void (*batch_norm_forward)(const BatchNormForward<T>&);
    void (*batch_norm_backward)(const BatchNormBackward<T>&);
    void (*layer_norm_forward)(const LayerNormForward<T>&);
    void (*layer_norm_backward)(const LayerNormBackward<T>&);
    void (*dropout)(const Dropout<T>&);
    void (*relu)(std::int64_t count, const T* from, T* to);
    void (*activation_backward)(const ActivationBackward<T>&);
    void (*softmax_forward)(const SoftmaxForward<T>&);
    void (*softmax_backward)(const SoftmaxBackward<T>&);
    void (*max_pool_forward)(const MaxPoolForward<T>&);
    void (*max_pool_backward)(const MaxPoolBackward<T>&);
    void (*avg_pool_forward)(const AvgPoolForward<T>&);
    void (*avg_pool_backward)(const AvgPoolBackward<T>&);
    void (*global_avg_pool)(const GlobalAvgPool<T>&);
};

struct KernelTable {
    const char* isa;
    const char* flags;  // the compiler flags that the variant was built with
    Kernels<float> f32;
    Kernels<double> f64;
    double (*fma_peak)(int threads, double seconds);          // GFLOP/s, float32
    double (*memory_bandwidth)(int threads, double seconds);  // GB/s, triad
};

}  // namespace tbptt
