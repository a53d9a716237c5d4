// Elementary functions for either type, as exact as CUDA's own: exp and log within 2 ULP, roots rounded correctly.
#pragma once

#include <cmath>

#include "device.h"

namespace tbptt {
namespace cuda {

TBPTT_DEVICE float exponential(float x) { return ::expf(x); }
TBPTT_DEVICE double exponential(double x) { return ::exp(x); }
TBPTT_DEVICE float square_root(float x) { return ::sqrtf(x); }
TBPTT_DEVICE double square_root(double x) { return ::sqrt(x); }

template <class T>
TBPTT_DEVICE T not_a_number() {
    return static_cast<T>(NAN);
}

}  // namespace cuda
}  // namespace tbptt
