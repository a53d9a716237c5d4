// The gradient before an activation, and its sums over all pixels, which are the gradient by the bias: one pass for both.
#pragma once

#include "activation.h"
#include "convolution_weights.h"

namespace tbptt {
namespace cuda {

template <class T>
struct BeforeActivation {
    Activation activation;
    int channels, lanes;        // lanes: threads side by side over the channels (channels last)
    std::int64_t count, plane;  // accesses of one channel (first) or of all pixels (last); in one image
    std::int64_t part;          // accesses of one block's part
    const T* grad_y;
    const T* y;      // null without activation
    T* g;            // out =, or null
    Real<T>* parts;  // out = [parts, channels], or null
};

// A block has some channels and rows of pixels (channels last) or one channel (first). Width: values of an access.
template <class T, bool Last, int Width>
__global__ void __launch_bounds__(256, 4) before_activation(const BeforeActivation<T> p) {
    using Access = Group<T, Width>;
    const int thread = static_cast<int>(threadIdx.x), lanes = Last ? p.lanes : 1;
    const int lane = thread % lanes, row = thread / lanes, rows = 256 / lanes;
    const int channel = Last ? (static_cast<int>(blockIdx.x) * lanes + lane) * Width : static_cast<int>(blockIdx.x);
    const std::int64_t begin = blockIdx.y * p.part, end = p.count - begin < p.part ? p.count : begin + p.part;
    Real<T> sum[Width];
#pragma unroll
    for (int e = 0; e < Width; ++e) sum[e] = 0;
    if (channel < p.channels) {
#pragma unroll 4
        for (std::int64_t i = begin + row; i < end; i += rows) {
            std::int64_t at = i * p.channels + channel;
            if (!Last) {
                const std::int64_t image = i / p.plane;
                at = ((image * p.channels + channel) * p.plane + (i - image * p.plane)) * Width;
            }
            Access value = *reinterpret_cast<const Access*>(p.grad_y + at);
            if (p.y) {
                const Access output = *reinterpret_cast<const Access*>(p.y + at);
#pragma unroll
                for (int e = 0; e < Width; ++e) {
                    const Real<T> gradient =
                        activation_gradient<Real<T>>(p.activation, output.value[e], value.value[e]);
                    value.value[e] = T(gradient);
                    sum[e] += gradient;
                }
                *reinterpret_cast<Access*>(p.g + at) = value;
                continue;
            }
#pragma unroll
            for (int e = 0; e < Width; ++e) sum[e] += value.value[e];
        }
    }
    if (!p.parts) return;
    Real<T>* sums = shared_memory<Real<T>>();  // [width, threads]
#pragma unroll
    for (int e = 0; e < Width; ++e) sums[e * 256 + thread] = sum[e];
    for (int left = rows / 2; left > 0; left /= 2) {
        __syncthreads();
        if (row < left)
#pragma unroll
            for (int e = 0; e < Width; ++e) sums[e * 256 + thread] += sums[e * 256 + thread + left * lanes];
    }
    if (row == 0 && channel < p.channels) {
        Real<T>* to = p.parts + std::int64_t{blockIdx.y} * p.channels + channel;
        if (Last) {
#pragma unroll
            for (int e = 0; e < Width; ++e) to[e] = sums[e * 256 + thread];
        } else {
            Real<T> total = 0;
#pragma unroll
            for (int e = 0; e < Width; ++e) total += sums[e * 256 + thread];
            to[0] = total;
        }
    }
}

// g = grad_y·f'(y), unless there is no activation, and grad_b unless it is null. In bfloat16 g is rounded, as products take it;
// grad_b adds it up before.
template <class T>
void find_before_activation(Activation activation, std::int64_t batch, const Images& images, bool last, const T* grad_y,
                            const T* y, T* g, T* grad_b, Stream stream) {
    constexpr int group = Group<T>::size;
    const std::int64_t plane = std::int64_t{images.height} * images.width;
    const bool active = activation != Activation::none;
    if (images.channels == 0 || (!active && !grad_b)) return;
    const bool groups = (last ? images.channels : plane) % group == 0 && in_groups(grad_y) &&
                        (!active || (in_groups(y) && in_groups(g)));
    const int width = groups ? group : 1;
    BeforeActivation<T> p{activation, images.channels, 1,       0,       last ? plane : plane / width,
                          0,          grad_y,          nullptr, nullptr, nullptr};
    p.count = batch * p.plane;
    if (active) p.y = y, p.g = g;
    const std::int64_t across = last ? divide_up(images.channels, width) : 1;
    while (p.lanes < across && p.lanes < warp_size) p.lanes *= 2;
    constexpr std::int64_t blocks = 1056;  // eight on each multiprocessor of a large chip
    Grid grid;
    grid.x = static_cast<unsigned>(last ? divide_up(across, p.lanes) : images.channels);
    const std::int64_t rows = 256 / p.lanes, least = 4 * rows;
    std::int64_t parts = divide_up(blocks, grid.x);
    if (parts > p.count / least) parts = p.count / least;
    if (parts < 1) parts = 1;
    p.part = divide_up(p.count, parts);
    parts = p.count > 0 ? divide_up(p.count, p.part) : 1;
    grid.y = static_cast<unsigned>(parts);
    grid.shared_bytes = 256 * width * sizeof(Real<T>);
    const bool direct = parts == 1 && !is_narrow<T>;
    const Scratch<Real<T>> sums(grad_b && !direct ? parts * images.channels : 0, stream);
    p.parts = direct ? only_part(grad_b) : static_cast<Real<T>*>(sums);
    const auto kernel = last     ? groups ? before_activation<T, true, group> : before_activation<T, true, 1>
                        : groups ? before_activation<T, false, group>
                                 : before_activation<T, false, 1>;
    launch(kernel, grid, stream, p);
    if (sums) run_sums(PartSums<T>{images.channels, static_cast<int>(parts), 0, 0, 0, 0, sums, grad_b}, stream);
}

}  // namespace cuda
}  // namespace tbptt
