// Images in planes from and to images with their channels together, a run of pixels at a time.
#pragma once

#include "interleave.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

// to [pixels][pixel] = from [channels][plane], of which `pixels` and `channels` count.
template <class T>
__attribute__((noinline)) void planes_to_pixels(const T* from, int64_t plane, int64_t pixels, int64_t channels, T* to,
                                                int64_t pixel) {
    constexpr int L = lanes<T>;
    for (int64_t c = 0; c < channels; c += L)
        for (int64_t i = 0; i < pixels; i += L) {
            Vec<T> rows[L];
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r)
                rows[r] = r < channels - c ? load_partial(from + (c + r) * plane + i, pixels - i) : Vec<T>{};
            transpose<T>(rows);
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r)
                if (r < pixels - i) store_partial(to + (i + r) * pixel + c, rows[r], channels - c);
        }
}

// to [channels][plane] = from [pixels][pixel]
template <class T>
__attribute__((noinline)) void pixels_to_planes(const T* from, int64_t pixel, int64_t pixels, int64_t channels, T* to,
                                                int64_t plane) {
    planes_to_pixels<T>(from, pixel, channels, pixels, to, plane);
}

// All images [images], each of `pixels` and `channels`, with their channels brought together, or back into planes.
template <class T>
__attribute__((noinline)) void turn_images(int64_t images, int64_t pixels, int64_t channels, const T* from, T* to,
                                           bool together) {
    constexpr int64_t run = 256;
    const int64_t runs = ceil_div(pixels, run), size = pixels * channels;
    run_parallel(threads_for(4.0 * static_cast<double>(images * size)), [&](const Worker& worker) {
        const Range mine = split(images * runs, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const int64_t image = i / runs * size, first = i % runs * run, count = smaller(run, pixels - first);
            if (together)
                planes_to_pixels<T>(from + image + first, pixels, count, channels, to + image + first * channels,
                                    channels);
            else
                pixels_to_planes<T>(from + image + first * channels, channels, count, channels, to + image + first,
                                    pixels);
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
