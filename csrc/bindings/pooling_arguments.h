// What pooling is made of, read in one way for every place where arrays may lie.
#pragma once

#include "windows.h"

namespace tbptt::python {

// Batches of images: [N, C, Y, X] or [N, Y, X, C].
struct Images {
    int64_t batch, channels, y, x;
    bool channels_last;

    // The values of a plane.
    int64_t plane() const { return element_count({y, x}); }
};

Extents image_extents(const Images& s);
Images read_images(Shape shape, bool channels_last, const Argument& argument);
Images read_input_shape(py::handle given, bool channels_last, const char* op);

struct Pool {
    Images images;
    PoolShape shape;

    Images pooled() const { return {shape.batch, shape.channels, shape.y.out, shape.x.out, shape.channels_last}; }
};

struct PoolOptions {
    py::handle kernel, stride, padding, ceil_mode;
};

Pool read_pool(const Images& images, const PoolOptions& options, const char* op);

// Maxima of this dtype know places in planes of this size.
void check_plane(DType dtype, const Images& images, const Argument& argument);

// The windows of max-pooling whose gradients these are.
Images read_windows(Shape grad_out, const Images& images, const char* op);

// One window over every plane: [N, C] is then [N, C, 1, 1] and [N, 1, 1, C] alike.
Pool whole_planes(const Images& images);

}  // namespace tbptt::python
