// The convolutions of recurrent layers on images, as every version of the kernels asks for them.
#pragma once

#include "../api_recurrent.h"
#include "cell.h"

namespace tbptt {

TBPTT_CELL_DRIVER std::int64_t pixels_of(const ConvRecurrentShape& s) { return s.height * s.width; }

// Whether images in planes are the same run of memory.
TBPTT_CELL_DRIVER bool same_order(const ConvRecurrentShape& s, std::int64_t channels) {
    return s.channels_last || channels == 1 || pixels_of(s) == 1;
}

// The convolution of `images` images of x (`state`: of h) of a cell with so many gates, channels last.
TBPTT_CELL_DRIVER ConvolutionShape convolution_of(const ConvRecurrentShape& s, int gates, std::int64_t images,
                                                  bool state) {
    const std::int64_t height = state ? s.kernel_hh_height : s.kernel_ih_height;
    const std::int64_t width = state ? s.kernel_hh_width : s.kernel_ih_width;
    ConvolutionShape c{};
    c.batch = images;
    c.groups = 1;
    c.inputs = state ? s.hidden : s.inputs;
    c.outputs = gates * s.hidden;
    c.height = c.out_height = s.height;
    c.width = c.out_width = s.width;
    c.kernel_height = height;
    c.kernel_width = width;
    c.stride_y = c.stride_x = 1;
    c.dilation_y = s.dilation_y;
    c.dilation_x = s.dilation_x;
    c.pad_top = (height - 1) / 2 * s.dilation_y;
    c.pad_left = (width - 1) / 2 * s.dilation_x;
    c.channels_last = true;
    c.algorithm = s.algorithm;
    return c;
}

}  // namespace tbptt
