// The kernel table of one ISA.
#include "avg_pool.h"
#include "batch_norm.h"
#include "dropout.h"
#include "elementwise.h"
#include "embedding.h"
#include "layer_norm.h"
#include "linear.h"
#include "loss.h"
#include "max_pool.h"
#include "optimizer.h"
#include "peak.h"
#include "softmax.h"

#define TBPTT_STRING_(x) #x
#define TBPTT_STRING(x) TBPTT_STRING_(x)

namespace tbptt {
namespace TBPTT_ISA {

// Instantiated in recurrent_float.cpp and recurrent_double.cpp.
template <class T>
void recurrent_forward(const RecurrentForward<T>&);
template <class T>
void recurrent_backward(const RecurrentBackward<T>&);

// Instantiated in convrecurrent_float.cpp and convrecurrent_double.cpp.
template <class T>
void convrecurrent_forward(const ConvRecurrentForward<T>&);
template <class T>
void convrecurrent_backward(const ConvRecurrentBackward<T>&);

// Instantiated in convolution_float.cpp and convolution_double.cpp.
template <class T>
void convolution_forward(const ConvolutionForward<T>&);
template <class T>
void convolution_backward(const ConvolutionBackward<T>&);

namespace {

template <class T>
void exp_array(int64_t count, const T* from, T* to) {
    map<T>(count, from, to, [](auto x) { return wide_exp(x); });
}

template <class T>
void tanh_array(int64_t count, const T* from, T* to) {
    map<T>(count, from, to, [](auto x) { return wide_tanh(x); });
}

template <class T>
void sigmoid_array(int64_t count, const T* from, T* to) {
    map<T>(count, from, to, [](auto x) { return wide_sigmoid(x); });
}

template <class T>
void relu_array(int64_t count, const T* from, T* to) {
    map<T>(count, from, to, [](auto x) { return activate(Activation::relu, x); });
}

template <class T>
constexpr Kernels<T> make_kernels() {
    return {recurrent_forward<T>,
            recurrent_backward<T>,
            convrecurrent_forward<T>,
            convrecurrent_backward<T>,
            linear_forward<T>,
            linear_backward<T>,
            convolution_forward<T>,
            convolution_backward<T>,
            embedding_forward<T>,
            embedding_backward<T>,
            softmax_cross_entropy<T>,
            pointwise_loss<T>,
            gradient_norm<T>,
            sgd_step<T>,
            rmsprop_step<T>,
            adam_step<T>,
            exp_array<T>,
            tanh_array<T>,
            sigmoid_array<T>,
            batch_norm_forward<T>,
            batch_norm_backward<T>,
            layer_norm_forward<T>,
            layer_norm_backward<T>,
            dropout<T>,
            relu_array<T>,
            activation_backward<T>,
            softmax_forward<T>,
            softmax_backward<T>,
            max_pool_forward<T>,
            max_pool_backward<T>,
            avg_pool_forward<T>,
            avg_pool_backward<T>,
            global_avg_pool<T>};
}

}  // namespace

extern const KernelTable table;
const KernelTable table = {TBPTT_STRING(TBPTT_ISA), TBPTT_ISA_FLAGS, make_kernels<float>(),
                           make_kernels<double>(),  fma_peak,        memory_bandwidth};

}  // namespace TBPTT_ISA
}  // namespace tbptt
