// Convolution of images with few channels that lie together: pixels are the rows of a product with the weights, read from
// a strip [kernel row][column][channel] in pieces of a whole kernel row.
#pragma once

#include "shallow_strips.h"
#include "shallow_tiles.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ShallowLast {
   public:
    explicit ShallowLast(const ConvolutionForward<T>& p)
        : p_(p),
          s_(p.shape),
          threads_(threads_for(shallow::flops(s_))),
          pieces_(s_),
          width_(smaller(most_columns, s_.out_width)),
          strips_(s_, p.x, width_),
          blocks_(ceil_div(s_.out_width, width_)),
          weights_(layout_panels<T>(pieces_.count * pieces_.length, s_.outputs, panel_vectors())),
          packed_(weights_.size()),
          bias_(weights_.panels * weights_.width()),
          begins_(pieces_.count),
          strip_(threads_ * strips_.size()),
          tasks_(s_.batch * s_.out_height * blocks_, threads_) {
        weights_.data = packed_;
        for (int64_t t = 0; t < pieces_.count; ++t) begins_[t] = pieces_.begin(t, strips_.pitch());
        for (int64_t k = 0; k < weights_.panels * weights_.width(); ++k)
            bias_[k] = p.b && k < s_.outputs ? p.b[k] : T(0);
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range panels = split(weights_.panels, worker);
            for (int64_t i = panels.begin; i < panels.end; ++i) pack(i);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { make(strip_ + worker.index * strips_.size(), i); });
        });
    }

   private:
    static constexpr int64_t most_columns = 256;

    // Narrow panels have high tiles, which read the panel less often.
    int panel_vectors() const {
        const int64_t needed = ceil_div(s_.outputs, lanes<T>);
        return needed == 1 ? 1 : needed % 2 != 0 && needed % 3 == 0 ? 3 : 2;
    }

    // Rows of a panel are in the order of a strip: kernel row, kernel column, channel.
    void pack(int64_t p) {
        T* to = weights_.panel(p);
        for (int64_t t = 0; t < shallow::taps(s_); ++t)
            for (int64_t c = 0; c < s_.inputs; ++c)
                for (int64_t lane = 0; lane < weights_.width(); ++lane) {
                    const int64_t k = p * weights_.width() + lane;
                    *to++ = k < s_.outputs ? p_.w[(k * s_.inputs + c) * shallow::taps(s_) + t] : T(0);
                }
    }

    void make(T* strip, int64_t task) {
        const int64_t x0 = task % blocks_ * width_, row = task / blocks_, width = smaller(width_, s_.out_width - x0);
        strips_.copy(row / s_.out_height, row % s_.out_height, x0, strip, nullptr);
        T* const out = p_.y + (row * s_.out_width + x0) * s_.outputs;
        const int64_t tiles = ceil_div(width, shallow::max_row_tile_rows(weights_.vectors));
        for (int64_t p = 0; p < weights_.panels; ++p)
            for (int64_t i = 0; i < tiles; ++i) {
                const Range rows = split(width, i, tiles);
                const int64_t k = p * weights_.width();
                shallow::find_row_tile<T>(static_cast<int>(rows.end - rows.begin), weights_.vectors)(
                    strip + rows.begin * pieces_.step(), pieces_.step(), begins_, pieces_.count, pieces_.length,
                    weights_.panel(p), bias_ + k, out + rows.begin * s_.outputs + k, s_.outputs, s_.outputs - k);
            }
        if (p_.activation == Activation::none) return;
        map_part<T>(width * s_.outputs, out, out, [&](auto value) { return activate(p_.activation, value); });
    }

    const ConvolutionForward<T>& p_;
    const ConvolutionShape& s_;
    const int threads_;
    const shallow::Pieces pieces_;
    const int64_t width_;  // outputs of a block
    const shallow::Strips<T> strips_;
    const int64_t blocks_;
    Packed<T> weights_;
    Buffer<T> packed_, bias_;
    Buffer<int64_t> begins_;
    Buffer<T> strip_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
