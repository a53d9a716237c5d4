// One call that XLA makes into the library, by its typed foreign function interface: arrays, taken one after another, and
// options. Python has checked them when it traced the call; what is checked here is that nobody reads or writes beyond an
// array's end, whoever calls.
#pragma once

#include <xla/ffi/api/ffi.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../../memory.h"

namespace tbptt::jax {

namespace ffi = xla::ffi;
using std::int64_t;

template <class T>
constexpr ffi::DataType dtype_of = ffi::DataType::PRED;
template <>
inline constexpr ffi::DataType dtype_of<float> = ffi::DataType::F32;
template <>
inline constexpr ffi::DataType dtype_of<double> = ffi::DataType::F64;

class Call {
   public:
    Call(const ffi::RemainingArgs& inputs, const ffi::RemainingRets& outputs, const ffi::Dictionary& options)
        : inputs_(inputs), outputs_(outputs), options_(options) {}

    // The next input, of `count` elements; T is uint8_t for truth values.
    template <class T>
    const T* input(int64_t count) {
        return take<T>(next_input(), count);
    }
    // The same, or null: an array without elements stands for one that is missing.
    template <class T>
    const T* optional_input(int64_t count) {
        const ffi::AnyBuffer given = next_input();
        return given.element_count() == 0 ? nullptr : take<T>(given, count);
    }
    template <class T>
    T* output(int64_t count) {
        return take_new<T>(next_output(), count);
    }
    template <class T>
    T* optional_output(int64_t count) {
        const ffi::AnyBuffer given = next_output();
        return given.element_count() == 0 ? nullptr : take_new<T>(given, count);
    }
    std::size_t inputs_left() const { return inputs_.size() - inputs_taken_; }

    bool is_double() const {
        const ffi::DataType dtype = input_at(0).element_type();
        if (dtype != ffi::DataType::F32 && dtype != ffi::DataType::F64) refuse("expected float32 or float64");
        return dtype == ffi::DataType::F64;
    }

    template <class Value>
    Value option(std::string_view name) const {
        const auto found = options_.get<Value>(name);
        if (!found.has_value()) refuse("expected the option " + std::string(name));
        return *found;
    }
    // Integers, as many as `Count` says.
    template <std::size_t Count>
    ffi::Span<const int64_t> integers(std::string_view name) const {
        const auto found = option<ffi::Span<const int64_t>>(name);
        if (found.size() != Count) refuse("expected " + std::to_string(Count) + " integers as " + std::string(name));
        return found;
    }

    [[noreturn]] static void refuse(const std::string& message) {
        throw std::invalid_argument("tbptt_fast: " + message);
    }

   private:
    ffi::AnyBuffer input_at(std::size_t index) const {
        const auto found = inputs_.get<ffi::AnyBuffer>(index);
        if (!found.has_value()) refuse("expected more inputs than " + std::to_string(inputs_.size()));
        return *found;
    }
    ffi::AnyBuffer next_input() { return input_at(inputs_taken_++); }
    ffi::AnyBuffer next_output() {
        auto found = outputs_.get<ffi::AnyBuffer>(outputs_taken_++);
        if (!found.has_value()) refuse("expected more results than " + std::to_string(outputs_.size()));
        return **found;
    }
    template <class T>
    static T* take(const ffi::AnyBuffer& given, int64_t count) {
        if (given.element_type() != dtype_of<T>) refuse("expected arrays of one dtype");
        if (static_cast<int64_t>(given.element_count()) != count)
            refuse("expected an array of " + std::to_string(count) + " elements, got " +
                   std::to_string(given.element_count()));
        return static_cast<T*>(given.untyped_data());
    }

    // XLA gets large results from the system for every call, and the first touch of small pages would take a tenth of the
    // time of the pass that fills them.
    template <class T>
    static T* take_new(const ffi::AnyBuffer& given, int64_t count) {
        T* found = take<T>(given, count);
        prefer_huge_pages(found, static_cast<std::size_t>(count) * sizeof(T));
        return found;
    }

    const ffi::RemainingArgs& inputs_;
    const ffi::RemainingRets& outputs_;
    const ffi::Dictionary& options_;
    std::size_t inputs_taken_ = 0, outputs_taken_ = 0;
};

// run(call, float()) or run(call, double()), and what it throws as XLA's error.
template <class Op>
ffi::Error answer(ffi::RemainingArgs inputs, ffi::RemainingRets outputs, ffi::Dictionary options) try {
    Call call(inputs, outputs, options);
    call.is_double() ? Op::run(call, double()) : Op::run(call, float());
    return ffi::Error::Success();
} catch (const std::bad_alloc&) {
    return {ffi::ErrorCode::kResourceExhausted, "tbptt_fast: out of memory"};
} catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(error.what());
}

// What XLA calls.
template <class Op>
XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame) {
    static auto* const handler = ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs().To(&answer<Op>).release();
    return handler->Call(frame);
}

struct Target {
    const char* name;
    XLA_FFI_Error* (*handler)(XLA_FFI_CallFrame*);
};

}  // namespace tbptt::jax
