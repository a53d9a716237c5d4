// Elementary functions for either type beside those of scalar_math.h; roots are rounded correctly.
#pragma once

#include <cmath>

#include "scalar_math.h"

namespace tbptt {
namespace cuda {

TBPTT_DEVICE float square_root(float x) { return ::sqrtf(x); }
TBPTT_DEVICE double square_root(double x) { return ::sqrt(x); }

template <class T>
TBPTT_DEVICE T not_a_number() {
    return static_cast<T>(NAN);
}

}  // namespace cuda
}  // namespace tbptt
