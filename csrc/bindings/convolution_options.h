// What is asked of one convolution: its options and the shapes of its arrays, read and checked.
#pragma once

#include "arguments.h"

namespace tbptt::python {

struct ConvolutionOp {
    const char* name;
    int rank;         // 1 or 2; to the kernels, one dimension is images of height 1
    bool transposed;  // of rank 2 only
};

struct ConvolutionOptions {
    py::handle stride, padding;
    py::handle output_padding;  // null unless transposed
    py::handle dilation, groups, layout;
    py::handle algo;  // null in one dimension: automatic
};

struct Convolution {
    ConvolutionShape shape;
    int64_t out_channels;
    Extents x, w, y;  // public shapes
};

Convolution read_convolution(const ConvolutionOp& op, Shape x, Shape w, const ConvolutionOptions& options);

}  // namespace tbptt::python
