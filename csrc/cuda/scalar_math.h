// The maths of one thread, for the cells (../cells/cell.h), as exact as CUDA's own functions: 1 or 2 ULP.
#pragma once

#ifdef TBPTT_EMULATED
#include <cmath>
#endif

#include "device.h"

namespace tbptt {
namespace cuda {

TBPTT_DEVICE float exponential(float x) { return expf(x); }
TBPTT_DEVICE double exponential(double x) { return exp(x); }
TBPTT_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
TBPTT_DEVICE double hyperbolic_tangent(double x) { return tanh(x); }

template <class T>
struct ScalarMath {
    using Value = T;
    static TBPTT_DEVICE T one() { return T(1); }
    static TBPTT_DEVICE T tanh(T x) { return hyperbolic_tangent(x); }
    static TBPTT_DEVICE T sigmoid(T x) { return T(1) / (T(1) + exponential(-x)); }
    // NaN passes
    static TBPTT_DEVICE T relu(T x) { return x < T(0) ? T(0) : x; }
    static TBPTT_DEVICE T relu_gradient(T y, T grad) { return y <= T(0) ? T(0) : grad; }
};

}  // namespace cuda
}  // namespace tbptt
