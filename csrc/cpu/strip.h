// Parts of images with their channels together: where they lie, or, of images in planes, transposed into a buffer in cache.
#pragma once

#include "correlation.h"
#include "interleave.h"

namespace tbptt {
namespace TBPTT_ISA {

struct Area {
    int64_t n, top, left, bottom, right;  // of image n, the rows top … bottom-1 and columns left … right-1

    int64_t height() const { return bottom - top; }
    int64_t width() const { return right - left; }
    bool empty() const { return top >= bottom || left >= right; }
    Area within(const ImageShape& image) const {
        const Area clipped{n, larger<int64_t>(0, top), larger<int64_t>(0, left), smaller(image.height, bottom),
                           smaller(image.width, right)};
        return clipped.empty() ? Area{n, 0, 0, 0, 0} : clipped;
    }
};

// The channels first … first+count-1 of an area.
template <class T>
struct Strip {
    T* data;
    Area area;
    int64_t pixel, row;  // elements from one to the next

    T* at(int64_t y, int64_t x) const { return data + (y - area.top) * row + (x - area.left) * pixel; }
};

// Elements of a buffer for a strip: whole vectors of channels.
template <class T>
TBPTT_INLINE int64_t strip_size(int64_t pixels, int64_t channels) {
    return pixels * ceil_div(channels, lanes<T>) * lanes<T>;
}

// Calls body(offset in the plane, offset in the strip, length) for the area's runs of neighbouring pixels.
template <class Body>
TBPTT_INLINE void for_runs(const ImageShape& image, const Area& area, Body body) {
    const int64_t width = area.width();
    if (area.empty()) return;
    if (width == image.width) return body(area.top * width, 0, area.height() * width);
    for (int64_t y = area.top; y < area.bottom; ++y) body(y * image.width + area.left, (y - area.top) * width, width);
}

// An area within the image; of planes, it is written to the buffer.
template <class T>
Strip<const T> read_strip(const ImageShape& image, const T* data, const Area& area, int64_t first, int64_t count,
                          T* buffer) {
    if (image.channels_last)
        return {data + image.at(area.n, area.top, area.left) + first, area, image.channels,
                image.width * image.channels};
    constexpr int L = lanes<T>;
    const int64_t padded = ceil_div(count, L) * L, plane = image.plane();
    for (int64_t c = 0; c < count; c += L) {
        const T* planes = data + (area.n * image.channels + first + c) * plane;
        for_runs(image, area, [&](int64_t from, int64_t to, int64_t length) {
            T* out = buffer + to * padded + c;
            for (int64_t i = 0; i < length; i += L) {
                Vec<T> rows[L];
#pragma GCC unroll 16
                for (int r = 0; r < L; ++r)
                    rows[r] = r < count - c ? load_partial(planes + r * plane + from + i, length - i) : Vec<T>{};
                transpose<T>(rows);
#pragma GCC unroll 16
                for (int r = 0; r < L; ++r)
                    if (r < length - i) store(out + (i + r) * padded, rows[r]);
            }
        });
    }
    return {buffer, area, padded, area.width() * padded};
}

// Where an area's channels are to be written; write_strip then brings those of planes from the buffer into place.
template <class T>
Strip<T> open_strip(const ImageShape& image, T* data, const Area& area, int64_t first, int64_t count, T* buffer) {
    if (image.channels_last)
        return {data + image.at(area.n, area.top, area.left) + first, area, image.channels,
                image.width * image.channels};
    const int64_t padded = ceil_div(count, lanes<T>) * lanes<T>;
    return {buffer, area, padded, area.width() * padded};
}

template <class T>
void write_strip(const ImageShape& image, T* data, const Strip<T>& strip, int64_t first, int64_t count) {
    if (image.channels_last) return;
    constexpr int L = lanes<T>;
    const int64_t plane = image.plane();
    for (int64_t c = 0; c < count; c += L) {
        T* planes = data + (strip.area.n * image.channels + first + c) * plane;
        for_runs(image, strip.area, [&](int64_t to, int64_t from, int64_t length) {
            const T* in = strip.data + from * strip.pixel + c;
            for (int64_t i = 0; i < length; i += L) {
                Vec<T> rows[L];
#pragma GCC unroll 16
                for (int r = 0; r < L; ++r) rows[r] = r < length - i ? load(in + (i + r) * strip.pixel) : Vec<T>{};
                transpose<T>(rows);
#pragma GCC unroll 16
                for (int r = 0; r < L; ++r)
                    if (r < count - c) store_partial(planes + r * plane + to + i, rows[r], length - i);
            }
        });
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
