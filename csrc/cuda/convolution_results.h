// Where the sums of a convolution go: most are results, rounded to T at once. Those of parts of the depth are added up first,
// and in bfloat16 those that wait for an activation stay as they are until then, so that every result is rounded once.
#pragma once

#include "activation.h"
#include "convolution_geometry.h"

namespace tbptt {
namespace cuda {

template <class T>
struct Results {
    T* rounded;
    Real<T>* sums;  // in place of them, or null; where T is what is computed in, `rounded` may be sums, too

    void take_sums(Real<T>* to) {
        if constexpr (is_narrow<T>)
            sums = to;
        else
            rounded = to;
    }

    template <int N>
    TBPTT_DEVICE void store(std::int64_t at, const Group<Real<T>, N>& values) const {
        if (is_narrow<T> && sums) {
            *reinterpret_cast<Group<Real<T>, N>*>(sums + at) = values;
            return;
        }
        Group<T, N> results;
#pragma unroll
        for (int e = 0; e < N; ++e) results.value[e] = T(values.value[e]);
        *reinterpret_cast<Group<T, N>*>(rounded + at) = results;
    }
};

// A convolution's tiles end in ReLU by themselves; others would fill them with copies of their code.
inline bool is_of_tiles(Activation activation) {
    return activation == Activation::none || activation == Activation::relu;
}

// run() makes the `count` results of p.target, but for activations that its tiles do not know.
template <class T, class Sum, class Run>
void run_and_activate(Sum& p, std::int64_t count, Stream stream, const Run& run) {
    if (is_of_tiles(p.activation)) return run();
    const Scratch<Real<T>> sums(is_narrow<T> ? count : 0, stream);
    p.target.sums = sums;
    run();
    ActivateSums<T> behind{p.activation, count, sums, p.target.rounded};
    if constexpr (!is_narrow<T>) behind.from = p.target.rounded;
    run_activation(behind, stream);
}

// The results, [batch, plane, channels] or [batch, channels, plane], from the sums of all parts.
template <class T>
struct AddedParts {
    int count, parts, image;        // image: values of one
    const int* live;                // how many images there are, or null: all
    Divisor by_plane, by_channels;  // by_plane: 1 with channels last
    Activation activation;
    const Real<T>* from;  // [parts, count]
    const T* bias;        // or null
    Results<T> to;
};

template <class T>
__global__ void add_result_parts(const AddedParts<T> p) {
    const std::int64_t count = p.live ? std::int64_t{*p.live} * p.image : p.count;
    for (std::int64_t i = global_index(); i < count; i += global_count()) {
        const int plane = p.by_plane.quotient(static_cast<int>(i));
        Real<T> sum = 0;
        if (p.bias) sum = p.bias[p.by_channels.remainder(plane, p.by_channels.quotient(plane))];
#pragma unroll 4
        for (int part = 0; part < p.parts; ++part) sum += p.from[std::int64_t{part} * p.count + i];
        p.to.store(i, Group<Real<T>, 1>{{activate(p.activation, sum)}});
    }
}

// run() makes the results of p.target; where the depth is cut, its parts, which are then added up.
template <class T, class Sum, class Run>
void run_in_parts(Sum& p, std::int64_t batch, Stream stream, const Run& run) {
    const Images& images = p.target_images;
    if (p.parts == 1) return run_and_activate<T>(p, batch * images.image, stream, run);
    AddedParts<T> sum{to_index(batch * images.image),
                      p.parts,
                      static_cast<int>(images.image),
                      p.live,
                      divide_by(p.last ? 1 : std::int64_t{images.height} * images.width),
                      divide_by(images.channels),
                      p.activation,
                      nullptr,
                      p.bias,
                      p.target};
    const Scratch<Real<T>> parts(std::int64_t{p.parts} * sum.count, stream);
    sum.from = parts;
    p.target.take_sums(parts);
    p.part_size = sum.count;
    p.bias = nullptr;
    p.activation = Activation::none;
    run();
    launch(add_result_parts<T>, grid_for(sum.count), stream, sum);
}

}  // namespace cuda
}  // namespace tbptt
