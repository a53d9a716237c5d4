// A convolution whose weights are laid out once, as the steps of a recurrent layer ask for it.
#pragma once

#include "convolution_correlate.h"

namespace tbptt {
namespace cuda {

// With channels last, a stride of one and one group, or its transpose.
template <class T>
class PackedConvolution {
   public:
    // `shape.batch` is a number of images that it may be asked for.
    PackedConvolution(const ConvolutionShape& shape, const T* w, const T* b, const Call& call);

    // y = out, of so many images x: the sums, not rounded. `live`, or null, is on the device: how many images, from the first
    // one on, there are indeed.
    void run(std::int64_t images, const int* live, const T* x, Real<T>* y) const;

   private:
    static Correlation<T> correlate(const ConvolutionShape& shape, const T* w, const T* b);

    const ConvolutionShape shape_;
    const Call& call_;
    Correlation<T> p_;
    const Factors<T> factors_;
};

}  // namespace cuda
}  // namespace tbptt
