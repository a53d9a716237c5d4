// exp, tanh and sigmoid on vectors. No division: the reciprocal is a polynomial estimate refined by Newton steps.
//
// Maximum errors, measured against exact values over the whole range (tests/test_vector_math.py holds them to it):
//   exp      1.5 ULP; subnormal results included
//   sigmoid  2.5 ULP; flushed to zero below -87.3 / -708.3
//   tanh     2.5 ULP
// NaN travels; infinities give the limits.
#pragma once

#include "vec.h"

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
    static constexpr float underflow = -104.0f;  // exp of it rounds to zero
    static constexpr float largest = 88.7228391f;
    static constexpr float tanh_is_one = 10.0f;
    static constexpr int mantissa = 23, bias = 127, degree = 7, newton = 2;
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
    static constexpr int mantissa = 52, bias = 1023, degree = 13, newton = 3;
};

constexpr double inverse_factorial[] = {1.0,
                                        1.0,
                                        1.0 / 2,
                                        1.0 / 6,
                                        1.0 / 24,
                                        1.0 / 120,
                                        1.0 / 720,
                                        1.0 / 5040,
                                        1.0 / 40320,
                                        1.0 / 362880,
                                        1.0 / 3628800,
                                        1.0 / 39916800,
                                        1.0 / 479001600,
                                        1.0 / 6227020800};

// x = n·ln 2 + rest with |rest| <= ln(2)/2
template <class T>
struct ReducedExponent {
    Vec<T> n, rest;
};

template <class T>
TBPTT_INLINE ReducedExponent<T> reduce_exponent(Vec<T> x) {
    using C = MathConstants<T>;
    const Vec<T> n = (x * C::log2e + C::round_magic) - C::round_magic;
    return {n, (x - n * C::ln2_high) - n * C::ln2_low};
}

// exp(r) - 1 = r + r²·q(r): the Taylor series, whose first dropped term is below half an ULP for |r| <= ln(2)/2
template <class T>
TBPTT_INLINE Vec<T> expm1_polynomial(Vec<T> r) {
    constexpr int degree = MathConstants<T>::degree;
    Vec<T> q = broadcast(static_cast<T>(inverse_factorial[degree]));
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 2; --i) q = q * r + static_cast<T>(inverse_factorial[i]);
    return r + (r * r) * q;
}

// 2^n for integer-valued n in the range of normal exponents
template <class T>
TBPTT_INLINE Vec<T> power_of_two(Vec<T> n) {
    using C = MathConstants<T>;
    // The rounding magic puts the integer into the low mantissa bits, from where it is shifted into the exponent.
    const VecBits<T> bits = (VecBits<T>)(n + (C::round_magic + C::bias));
    return (Vec<T>)(bits << C::mantissa);
}

// 1/d for d in [1, 2]: the quadratic minimax estimate (error 1/99), then Newton steps, each squaring the error.
template <class T>
TBPTT_INLINE Vec<T> reciprocal_1_to_2(Vec<T> d) {
    Vec<T> r = (d * static_cast<T>(32.0 / 99) - static_cast<T>(48.0 * 3 / 99)) * d + static_cast<T>(70.0 * 3 / 99);
#pragma GCC unroll 4
    for (int i = 0; i < MathConstants<T>::newton; ++i) r += r * (static_cast<T>(1) - d * r);
    return r;
}

template <class T>
TBPTT_INLINE Vec<T> absolute(Vec<T> x) {
    constexpr int sign_bit = sizeof(T) * 8 - 1;
    return (Vec<T>)((VecBits<T>)x & ~((VecBits<T>{} + 1) << sign_bit));
}

template <class T>
TBPTT_INLINE Vec<T> with_sign_of(Vec<T> magnitude, Vec<T> sign) {
    constexpr int sign_bit = sizeof(T) * 8 - 1;
    return (Vec<T>)((VecBits<T>)magnitude | ((VecBits<T>)sign & ((VecBits<T>{} + 1) << sign_bit)));
}

template <class T>
TBPTT_INLINE Vec<T> vec_exp(Vec<T> x) {
    using C = MathConstants<T>;
    const Vec<T> lowest = broadcast(C::underflow), highest = broadcast(C::largest), zero{};
    const Vec<T> clamped = x < lowest ? lowest : x > highest ? highest : x;  // comparisons with NaN are false: it stays
    const ReducedExponent<T> reduced = reduce_exponent<T>(clamped);
    const Vec<T> fraction = expm1_polynomial<T>(reduced.rest) + static_cast<T>(1);
    // 2^n may lie outside the normal exponents where the result does not: scale in two steps.
    const Vec<T> half = (reduced.n * static_cast<T>(0.5) + C::round_magic) - C::round_magic;
    const Vec<T> value = fraction * power_of_two<T>(half) * power_of_two<T>(reduced.n - half);
    return x < lowest ? zero : x > highest ? broadcast(static_cast<T>(__builtin_inf())) : value;
}

// Both functions below use exp of a negative argument only, so that the denominator lies in [1, 2].
template <class T>
TBPTT_INLINE Vec<T> vec_sigmoid(Vec<T> x) {
    using C = MathConstants<T>;
    const Vec<T> magnitude = -absolute<T>(x), lowest = broadcast(C::smallest), one = broadcast(static_cast<T>(1)), zero{};
    const ReducedExponent<T> reduced = reduce_exponent<T>(magnitude < lowest ? lowest : magnitude);
    const Vec<T> fraction = expm1_polynomial<T>(reduced.rest) + static_cast<T>(1);
    Vec<T> e = fraction * power_of_two<T>(reduced.n);
    e = magnitude < lowest ? zero : e;
    return (x < zero ? e : one) * reciprocal_1_to_2<T>(one + e);
}

// tanh |x| = -m / (2 + m) with m = exp(-2|x|) - 1, which keeps full relative accuracy near zero.
template <class T>
TBPTT_INLINE Vec<T> vec_tanh(Vec<T> x) {
    using C = MathConstants<T>;
    const Vec<T> highest = broadcast(C::tanh_is_one);
    Vec<T> magnitude = absolute<T>(x);
    magnitude = magnitude > highest ? highest : magnitude;
    const ReducedExponent<T> reduced = reduce_exponent<T>(magnitude * static_cast<T>(-2));
    const Vec<T> scale = power_of_two<T>(reduced.n);
    const Vec<T> m = expm1_polynomial<T>(reduced.rest) * scale + (scale - static_cast<T>(1));
    return with_sign_of<T>(-m * reciprocal_1_to_2<T>(m + static_cast<T>(2)), x);
}

// The maths that the cells are written in; csrc/cells is templated on such a struct.
template <class T>
struct VecMath {
    using Value = Vec<T>;
    static TBPTT_INLINE Value tanh(Value x) { return vec_tanh<T>(x); }
    static TBPTT_INLINE Value sigmoid(Value x) { return vec_sigmoid<T>(x); }
    static TBPTT_INLINE Value one() { return broadcast(static_cast<T>(1)); }
    static TBPTT_INLINE Value relu(Value x) { return x < Value{} ? Value{} : x; }  // NaN is not less: it travels
    static TBPTT_INLINE Value relu_gradient(Value h, Value dh) { return h <= Value{} ? Value{} : dh; }
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
