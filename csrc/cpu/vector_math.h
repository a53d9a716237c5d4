// exp, tanh and sigmoid on vectors. No division: an estimate of the reciprocal is refined by Newton steps.
//
// Maximum errors, measured against exact values over the whole range (tests/test_vector_math.py holds them to it):
//   exp      1.5 ULP; subnormal results included
//   sigmoid  2 ULP; subnormal results may be flushed to zero
//   tanh     2.5 ULP
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

// `exponential`: minimax coefficients of (exp(r) - 1 - r)/r² for |r| <= ln(2)/2, from the constant on; expm1 made of them is
// within 2^-26 (float) and 2^-55 (double).
template <>
struct MathConstants<float> {
    static constexpr float round_magic = 12582912.0f;  // 1.5·2^23: adding and subtracting it rounds to an integer
    static constexpr float log2e = 1.44269504088896341f;
    static constexpr float ln2_high = 0.693145751953125f;  // few bits, so that n·ln2_high is exact
    static constexpr float ln2_low = 1.42860682030941723212e-6f;
    static constexpr float smallest = -87.3365447505531f;  // exp of it is the smallest normal number
    static constexpr float underflow = -104.0f;            // exp of it rounds to zero
    static constexpr float largest = 88.7228391f;
    static constexpr float tanh_is_one = 10.0f;
    static constexpr int digits = 24;
    static constexpr float exponential[] = {0.49999998149803618608f, 0.16666543423858209551f, 0.041667200666714167315f,
                                            0.0083665471716842484678f, 0.0013882518965830449427f};
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
    static constexpr int digits = 53;
    static constexpr double exponential[] = {
        0.50000000000000052,      0.16666666666666588959,    0.041666666666576466791,   0.0083333333333897379607,
        0.0013888888931667467667, 0.00019841269718702238153, 0.00002480150514230944692, 2.7557407693118971493e-6,
        2.7626092969876944682e-7, 2.50537735290158219e-8};
};

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

// exp(r) - 1 = r + r²·q(r)
template <class W>
TBPTT_INLINE W expm1_polynomial(W r) {
    using T = typename W::Element;
    constexpr auto& coefficients = MathConstants<T>::exponential;
    constexpr int last = static_cast<int>(sizeof(coefficients) / sizeof(T)) - 1;
    W q = W::all(coefficients[last]);
#pragma GCC unroll 16
    for (int i = last - 1; i >= 0; --i) q = q * r + coefficients[i];
    return (r * r) * q + r;
}

// a/(d + rest) for d in [1, 2] and a rest that d was too short for. Newton steps refine an estimate of 1/d to half the
// digits; the last step is on the quotient, so that its rounding and the rest are corrected too. Without a fused
// multiply-add the correction would round as much as it mends: there the processor divides.
template <class W>
TBPTT_INLINE W divide_by_1_to_2(W a, W d, W rest) {
#if defined(__FMA__) || defined(__aarch64__)
    using T = typename W::Element;
    W r = estimate_reciprocal(d);
#pragma GCC unroll 4
    for (int bits = 2 * Reciprocal<T>::bits; bits < MathConstants<T>::digits + 2; bits *= 2)
        r = r * (static_cast<T>(1) - d * r) + r;
    const W quotient = a * r;
    return r * ((a - d * quotient) - rest * quotient) + quotient;
#else
    const W quotient = a / d;
    return quotient - quotient * (rest / d);
#endif
}

template <class W>
TBPTT_INLINE W wide_exp(W x) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    const W clamped = at_least(C::underflow, at_most(C::largest + static_cast<T>(scales_any_power), x));
    const ReducedExponent<W> reduced = reduce_exponent(clamped);
    const W fraction = expm1_polynomial(reduced.rest) + static_cast<T>(1);
    if (scales_any_power) return scale(fraction, reduced.n);
    // 2^n may lie outside the normal exponents where the result does not: scale in two steps.
    const W half = (reduced.n * static_cast<T>(0.5) + C::round_magic) - C::round_magic;
    const W value = scale(scale(fraction, half), reduced.n - half);
    const W lowest = W::all(C::underflow), highest = W::all(C::largest);
    const W infinite = W::all(static_cast<T>(__builtin_inf()));
    return where_less(x, lowest, W::all(0), where_less(highest, x, infinite, value));
}

// Both functions below use exp of a negative argument only, so that the denominator lies in [1, 2].
template <class W>
TBPTT_INLINE W wide_sigmoid(W x) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    const W magnitude = minus_absolute(x), one = W::all(1), zero = W::all(0);
    const ReducedExponent<W> reduced =
        reduce_exponent(at_least(scales_any_power ? C::underflow : C::smallest, magnitude));
    W e = scale(expm1_polynomial(reduced.rest) + static_cast<T>(1), reduced.n);
    if (!scales_any_power) e = where_less(magnitude, W::all(C::smallest), zero, e);
    const W denominator = e + one;
    return divide_by_1_to_2(where_less(x, zero, e, one), denominator, e - (denominator - one));
}

// tanh |x| = -m / (2 + m) with m = exp(-2|x|) - 1, which keeps full relative accuracy near zero.
template <class W>
TBPTT_INLINE W wide_tanh(W x) {
    using T = typename W::Element;
    using C = MathConstants<T>;
    const ReducedExponent<W> reduced =
        reduce_exponent(at_least(-C::tanh_is_one, minus_absolute(x)) * static_cast<T>(2));
    const W power = scale(W::all(1), reduced.n);
    const W m = expm1_polynomial(reduced.rest) * power + (power - static_cast<T>(1));
    const W two = W::all(2), denominator = m + two;
    return with_sign_of(divide_by_1_to_2(m, denominator, m - (denominator - two)), x);
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
