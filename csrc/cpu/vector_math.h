// exp, tanh and sigmoid on vectors. No division: the reciprocal is a polynomial estimate refined by Newton steps.
//
// Maximum errors, measured against exact values over the whole range (tests/test_vector_math.py holds them to it):
//   exp      1.5 ULP; subnormal results included
//   sigmoid  3 ULP; flushed to zero below -87.3 / -708.3
//   tanh     3 ULP
// NaN travels; infinities give the limits.
//
// The functions are long chains of dependent operations, so they work on several vectors at once (Wide): one vector
// alone would leave the arithmetic units waiting.
#pragma once

#include "wide.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
struct MathConstants;

template <>
struct MathConstants<float> {
    static constexpr float round_magic = 12582912.0f;  // 1.5·2^23: adding it leaves the rounded integer in the low bits
    static constexpr float log2e = 1.44269504088896341f;
    static constexpr float ln2_high = 0.693145751953125f;  // few bits, so that n·ln2_high is exact
    static constexpr float ln2_low = 1.42860682030941723212e-6f;
    static constexpr float smallest = -87.3365447505531f;  // exp of it is the smallest normal number
    static constexpr float underflow = -104.0f;            // exp of it rounds to zero
    static constexpr float largest = 88.7228391f;
    static constexpr float tanh_is_one = 10.0f;
    static constexpr int mantissa = 23, bias = 127, degree = 7, newton = 1;
    static constexpr int reciprocal_terms = 3;  // error 1/99 on [1, 2]
    static constexpr float reciprocal[] = {32.0f / 99, -144.0f / 99, 210.0f / 99};
};

template <>
struct MathConstants<double> {
    static constexpr double round_magic = 6755399441055744.0;
    static constexpr double log2e = 1.44269504088896340736;
    static constexpr double ln2_high = 0.693147180369123816490;
    static constexpr double ln2_low = 1.90821492927058770002e-10;
    static constexpr double smallest = -708.396418532264106;
    static constexpr double underflow = -745.2;
    static constexpr double largest = 709.782712893383996;
    static constexpr double tanh_is_one = 20.0;
    static constexpr int mantissa = 52, bias = 1023, degree = 13, newton = 2;
    static constexpr int reciprocal_terms = 4;  // error 1/577 on [1, 2]
    static constexpr double reciprocal[] = {-128.0 / 577, 768.0 / 577, -1696.0 / 577, 1632.0 / 577};
};

constexpr double inverse_factorial[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

// x = n·ln 2 + rest with |rest| <= ln(2)/2
template <class W>
struct ReducedExponent {
    W n, rest;
};

template <class W>
TBPTT_INLINE ReducedExponent<W> reduce_exponent(W x) {
    using C = MathConstants<typename W::Element>;
    const W n = (x * C::log2e + C::round_magic) - C::round_magic;
    return {n, (x - n * C::ln2_high) - n * C::ln2_low};
}

// exp(r) - 1 = r + r²·q(r): the Taylor series, whose first dropped term is below half an ULP for |r| <= ln(2)/2
template <class W>
TBPTT_INLINE W expm1_polynomial(W r) {
    using T = typename W::Element;
    constexpr int degree = MathConstants<T>::degree;
    W q = W::all(static_cast<T>(inverse_factorial[degree]));
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 2; --i) q = q * r + static_cast<T>(inverse_factorial[i]);
    return (r * r) * q + r;
}

// 2^n for integer-valued n in the range of normal exponents: the rounding magic puts the integer into the low mantissa
// bits, from where it is shifted into the exponent.
template <class W>
TBPTT_INLINE W power_of_two(W n) {
    using C = MathConstants<typename W::Element>;
    return shift_left(n + (C::round_magic + C::bias), C::mantissa);
}

// a/d for d in [1, 2]: a minimax polynomial estimate of 1/d, refined by Newton steps, and a last step on the quotient, so
// that its rounding is corrected too.
template <class W>
TBPTT_INLINE W divide_by_1_to_2(W a, W d) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    W r = W::all(C::reciprocal[0]);
#pragma GCC unroll 4
    for (int i = 1; i < C::reciprocal_terms; ++i) r = r * d + C::reciprocal[i];
#pragma GCC unroll 4
    for (int i = 0; i < C::newton; ++i) r = r * (static_cast<T>(1) - d * r) + r;
    const W quotient = a * r;
    return r * (a - d * quotient) + quotient;
}

template <class W>
TBPTT_INLINE W wide_exp(W x) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    const W lowest = W::all(C::underflow), highest = W::all(C::largest);
    // Comparisons with NaN are false: it stays.
    const W clamped = where_less(x, lowest, lowest, where_less(highest, x, highest, x));
    const ReducedExponent<W> reduced = reduce_exponent(clamped);
    const W fraction = expm1_polynomial(reduced.rest) + static_cast<T>(1);
    // 2^n may lie outside the normal exponents where the result does not: scale in two steps.
    const W half = (reduced.n * static_cast<T>(0.5) + C::round_magic) - C::round_magic;
    const W value = fraction * power_of_two(half) * power_of_two(reduced.n - half);
    const W infinite = W::all(static_cast<T>(__builtin_inf()));
    return where_less(x, lowest, W::all(0), where_less(highest, x, infinite, value));
}

// Both functions below use exp of a negative argument only, so that the denominator lies in [1, 2].
template <class W>
TBPTT_INLINE W wide_sigmoid(W x) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    const W magnitude = -absolute(x), lowest = W::all(C::smallest), one = W::all(1), zero = W::all(0);
    const ReducedExponent<W> reduced = reduce_exponent(where_less(magnitude, lowest, lowest, magnitude));
    const W fraction = expm1_polynomial(reduced.rest) + static_cast<T>(1);
    const W e = where_less(magnitude, lowest, zero, fraction * power_of_two(reduced.n));
    return divide_by_1_to_2(where_less(x, zero, e, one), e + static_cast<T>(1));
}

// tanh |x| = -m / (2 + m) with m = exp(-2|x|) - 1, which keeps full relative accuracy near zero.
template <class W>
TBPTT_INLINE W wide_tanh(W x) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    const W highest = W::all(C::tanh_is_one), size = absolute(x);
    const ReducedExponent<W> reduced = reduce_exponent(where_less(highest, size, highest, size) * static_cast<T>(-2));
    const W scale = power_of_two(reduced.n);
    const W m = expm1_polynomial(reduced.rest) * scale + (scale - static_cast<T>(1));
    return with_sign_of(divide_by_1_to_2(static_cast<T>(0) - m, m + static_cast<T>(2)), x);
}

template <class T>
TBPTT_INLINE Vec<T> vec_exp(Vec<T> x) {
    return wide_exp(Wide<T, 1>{{x}}).part[0];
}

// The maths that the cells are written in; csrc/cells is templated on such a struct.
template <class T, int N>
struct VecMath {
    using Value = Wide<T, N>;
    static TBPTT_INLINE Value tanh(Value x) { return wide_tanh(x); }
    static TBPTT_INLINE Value sigmoid(Value x) { return wide_sigmoid(x); }
    static TBPTT_INLINE Value one() { return Value::all(1); }
    // NaN is not less than anything: it travels. relu'(0) = 0.
    static TBPTT_INLINE Value relu(Value x) { return where_less(x, Value::all(0), Value::all(0), x); }
    static TBPTT_INLINE Value relu_gradient(Value h, Value dh) {
        return where_at_most(h, Value::all(0), Value::all(0), dh);
    }
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
