// One call that XLA makes into the library, by its typed foreign function interface: arrays, taken one after another, and
// options. Python has checked them when it traced the call; what is checked here is that nobody reads or writes beyond an
// array's end, whoever calls. XLA has headers for C++, too, whose messages would bring the library of streams and locales into
// the module, some 6 % of its size; the interface itself is this one, of C.
#pragma once

#include <pybind11/pybind11.h>
#include <xla/ffi/api/c_api.h>

#include <cfenv>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../../memory.h"

namespace tbptt::jax {

using std::int64_t;

template <class T>
constexpr XLA_FFI_DataType dtype_of = XLA_FFI_DataType_INVALID;
template <>
inline constexpr XLA_FFI_DataType dtype_of<float> = XLA_FFI_DataType_F32;
template <>
inline constexpr XLA_FFI_DataType dtype_of<double> = XLA_FFI_DataType_F64;
template <>
inline constexpr XLA_FFI_DataType dtype_of<int64_t> = XLA_FFI_DataType_S64;
template <>
inline constexpr XLA_FFI_DataType dtype_of<bool> = XLA_FFI_DataType_PRED;
template <>
inline constexpr XLA_FFI_DataType dtype_of<std::uint8_t> = XLA_FFI_DataType_PRED;  // of arrays of truth values

struct Integers {
    const int64_t* data;
    std::size_t count;

    std::size_t size() const { return count; }
    const int64_t* begin() const { return data; }
    const int64_t* end() const { return data + count; }
    int64_t operator[](std::size_t i) const { return data[i]; }
};

class Call {
   public:
    // `stream`: of a device, on which the call puts its work
    Call(const XLA_FFI_CallFrame& frame, bool on_host, void* stream)
        : frame_(frame), on_host_(on_host), stream_(stream) {}

    void* stream() const { return stream_; }

    // The next input, of `count` elements; T is uint8_t for truth values.
    template <class T>
    const T* input(int64_t count) {
        return take<T>(next_input(), count);
    }
    // The same, or null: an array without elements stands for one that is missing.
    template <class T>
    const T* optional_input(int64_t count) {
        const XLA_FFI_Buffer& given = next_input();
        return elements(given) == 0 ? nullptr : take<T>(given, count);
    }
    template <class T>
    T* output(int64_t count) {
        return take_new<T>(next_output(), count);
    }
    template <class T>
    T* optional_output(int64_t count) {
        const XLA_FFI_Buffer& given = next_output();
        return elements(given) == 0 ? nullptr : take_new<T>(given, count);
    }
    // After the last one: what nobody takes, nobody has checked or filled.
    void no_more() const {
        const auto [inputs, outputs] = std::pair{frame_.args.size, frame_.rets.size};
        if (inputs_taken_ != inputs || outputs_taken_ != outputs)
            refuse("expected " + std::to_string(inputs_taken_) + " inputs and " + std::to_string(outputs_taken_) +
                   " results, got " + std::to_string(inputs) + " and " + std::to_string(outputs));
    }

    bool is_double() const {
        const XLA_FFI_DataType dtype = input_at(0).dtype;
        if (dtype != dtype_of<float> && dtype != dtype_of<double>) refuse("expected float32 or float64");
        return dtype == dtype_of<double>;
    }

    // Value: bool, int64_t, double, std::string_view or Integers.
    template <class Value>
    Value option(std::string_view name) const {
        for (int64_t i = 0; i < frame_.attrs.size; ++i)
            if (text(*frame_.attrs.names[i]) == name) {
                Value value{};
                if (read(frame_.attrs.types[i], frame_.attrs.attrs[i], value)) return value;
            }
        refuse("expected the option " + std::string(name));
    }
    // As many integers as `Count` says.
    template <std::size_t Count>
    Integers integers(std::string_view name) const {
        const auto found = option<Integers>(name);
        if (found.size() != Count) refuse("expected " + std::to_string(Count) + " integers as " + std::string(name));
        return found;
    }

    // The elements of an array: sizes come from outside, and their product may be too large.
    static int64_t count(std::initializer_list<int64_t> sizes) {
        int64_t result = 1;
        for (const int64_t size : sizes)
            if (__builtin_mul_overflow(result, size, &result)) refuse("expected smaller sizes");
        return result;
    }

    [[noreturn]] static void refuse(const std::string& message) {
        throw std::invalid_argument("tbptt_fast: " + message);
    }

   private:
    static std::string_view text(const XLA_FFI_ByteSpan& span) { return {span.ptr, span.len}; }

    static bool read(XLA_FFI_AttrType type, const void* given, std::string_view& value) {
        if (type != XLA_FFI_AttrType_STRING) return false;
        value = text(*static_cast<const XLA_FFI_ByteSpan*>(given));
        return true;
    }
    static bool read(XLA_FFI_AttrType type, const void* given, Integers& value) {
        const auto& array = *static_cast<const XLA_FFI_Array*>(given);
        if (type != XLA_FFI_AttrType_ARRAY || array.dtype != dtype_of<int64_t>) return false;
        value = {static_cast<const int64_t*>(array.data), array.size};
        return true;
    }
    template <class Scalar>
    static bool read(XLA_FFI_AttrType type, const void* given, Scalar& value) {
        const auto& scalar = *static_cast<const XLA_FFI_Scalar*>(given);
        if (type != XLA_FFI_AttrType_SCALAR || scalar.dtype != dtype_of<Scalar>) return false;
        value = *static_cast<const Scalar*>(scalar.value);
        return true;
    }

    const XLA_FFI_Buffer& input_at(int64_t index) const {
        if (index >= frame_.args.size) refuse("expected more inputs than " + std::to_string(frame_.args.size));
        return *static_cast<const XLA_FFI_Buffer*>(frame_.args.args[index]);
    }
    const XLA_FFI_Buffer& next_input() { return input_at(inputs_taken_++); }
    const XLA_FFI_Buffer& next_output() {
        if (outputs_taken_ >= frame_.rets.size)
            refuse("expected more results than " + std::to_string(frame_.rets.size));
        return *static_cast<const XLA_FFI_Buffer*>(frame_.rets.rets[outputs_taken_++]);
    }
    static int64_t elements(const XLA_FFI_Buffer& given) {
        int64_t result = 1;
        for (int64_t i = 0; i < given.rank; ++i) result *= given.dims[i];
        return result;
    }
    template <class T>
    static T* take(const XLA_FFI_Buffer& given, int64_t count) {
        if (given.dtype != dtype_of<T>) refuse("expected arrays of one dtype");
        if (elements(given) != count)
            refuse("expected an array of " + std::to_string(count) + " elements, got " +
                   std::to_string(elements(given)));
        return static_cast<T*>(given.data);
    }

    // XLA gets large results from the system for every call, and the first touch of small pages would take a tenth of the
    // time of the pass that fills them.
    template <class T>
    T* take_new(const XLA_FFI_Buffer& given, int64_t count) const {
        T* const found = take<T>(given, count);
        if (on_host_) prefer_huge_pages(found, static_cast<std::size_t>(count) * sizeof(T));
        return found;
    }

    const XLA_FFI_CallFrame& frame_;
    bool on_host_;
    void* stream_;
    int64_t inputs_taken_ = 0, outputs_taken_ = 0;
};

// XLA flushes subnormal numbers to zero on its own threads. The kernels' arithmetic is that of IEEE 754 on every thread, so
// that results depend neither on their number nor on who calls.
class DefaultArithmetic {
   public:
    DefaultArithmetic() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&before_); }
    DefaultArithmetic(const DefaultArithmetic&) = delete;
    DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

   private:
    std::fenv_t before_;
};

inline XLA_FFI_Error* error(const XLA_FFI_CallFrame& frame, XLA_FFI_Error_Code code, const char* message) {
    XLA_FFI_Error_Create_Args arguments{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message, code};
    return frame.api->XLA_FFI_Error_Create(&arguments);
}

// When a program is made, XLA asks which version of the interface a function was written for.
inline bool tell_version(const XLA_FFI_CallFrame& frame) {
    const XLA_FFI_Extension_Base* extension = frame.extension_start;
    if (!extension || extension->type != XLA_FFI_Extension_Metadata) return false;
    XLA_FFI_Metadata& metadata = *reinterpret_cast<const XLA_FFI_Metadata_Extension*>(extension)->metadata;
    metadata.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    metadata.traits = 0;
    return true;
}

// The stream of a call on a device; an error, where there is none, goes to XLA.
inline XLA_FFI_Error* find_stream(const XLA_FFI_CallFrame& frame, void*& stream) {
    XLA_FFI_Stream_Get_Args arguments{XLA_FFI_Stream_Get_Args_STRUCT_SIZE, nullptr, frame.ctx, nullptr};
    XLA_FFI_Error* const failed = frame.api->XLA_FFI_Stream_Get(&arguments);
    stream = arguments.stream;
    return failed;
}

// What XLA calls: Op::run(call, float()) or Op::run(call, double()), and what it throws as XLA's error.
template <class Op, bool has_stream = false>
XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame) try {
    if (tell_version(*frame)) return nullptr;
    void* stream = nullptr;
    if (has_stream)
        if (XLA_FFI_Error* const failed = find_stream(*frame, stream)) return failed;
    const DefaultArithmetic arithmetic;
    Call call(*frame, !has_stream, stream);
    call.is_double() ? Op::run(call, double()) : Op::run(call, float());
    return nullptr;
} catch (const std::bad_alloc&) {
    return error(*frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "tbptt_fast: out of memory");
} catch (const std::invalid_argument& problem) {
    return error(*frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, problem.what());
} catch (const std::exception& problem) {
    return error(*frame, XLA_FFI_Error_Code_INTERNAL, problem.what());
}

struct Target {
    const char* name;
    XLA_FFI_Handler* handler;
};

// As jax.ffi.register_ffi_target takes them, by their names.
template <std::size_t Count>
pybind11::dict as_capsules(const Target (&targets)[Count]) {
    pybind11::dict result;
    for (const Target& target : targets)
        result[target.name] = pybind11::capsule(reinterpret_cast<void*>(target.handler));
    return result;
}

}  // namespace tbptt::jax
