// What the passes of a convolutional recurrent layer share.
//
// Inside, images have their channels together: pixels are the rows of a step, which is the convolution of the state before and,
// in a kernel of its own, the cell on rows and units. The convolutions of x are made for many steps at once, where the gates
// will be. What a step multiplies is the same in all calls, so that gates that are made again have the same bits.
#pragma once

#include "../cells/convrecurrent.h"
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "api.h"
#include "convolution_packed.h"
#include "image_order.h"
#include "rounding.h"

namespace tbptt {
namespace cuda {

inline CellShape shape_of(Cell cell) {
    switch (cell) {
        case Cell::gru: return Gru<ScalarMath<float>>::shape;
        case Cell::lstm: return Lstm<ScalarMath<float>>::shape;
        default: return RnnTanh<ScalarMath<float>>::shape;
    }
}

// Sizes as kernels know them: a row is a pixel.
struct ImageRows {
    int batch, pixels, hidden;

    TBPTT_BOTH int image() const { return pixels * hidden; }  // values of a state's image
};

inline ImageRows rows_of(const ConvRecurrentShape& s) {
    to_index(pixels_of(s) * s.hidden);
    return {to_index(s.batch), to_index(pixels_of(s)), to_index(s.hidden)};
}

// Images [images, channels, pixels] with their channels together: the caller's, or a copy; null for null.
template <class T>
class ChannelsLast {
   public:
    ChannelsLast(const ConvRecurrentShape& s, std::int64_t images, std::int64_t channels, const T* given, Stream stream)
        : copy_(given && !same_order(s, channels) ? images * pixels_of(s) * channels : 0, stream),
          data_(copy_ ? static_cast<const T*>(copy_) : given) {
        if (copy_) turn_images<T, true>(images, images_of(s.height, s.width, channels, true), given, copy_, stream);
    }
    operator const T*() const { return data_; }

   private:
    const Scratch<T> copy_;
    const T* const data_;
};

// The same for images that are written: what `data` holds in the end goes to the caller by finish().
template <class T>
class WrittenChannelsLast {
   public:
    WrittenChannelsLast(const ConvRecurrentShape& s, std::int64_t images, std::int64_t channels, T* result,
                        Stream stream)
        : count_(images),
          images_(images_of(s.height, s.width, channels, true)),
          result_(result),
          stream_(stream),
          own_(result && !same_order(s, channels) ? images * pixels_of(s) * channels : 0, stream) {}
    T* data() const { return own_ ? static_cast<T*>(own_) : result_; }
    void finish() const {
        if (own_) turn_images<T, false>(count_, images_, own_, result_, stream_);
    }

   private:
    const std::int64_t count_;
    const Images images_;
    T* const result_;
    const Stream stream_;
    const Scratch<T> own_;
};

// The peepholes of a layer [3, H], or of each pixel [3, pixels, H].
template <class T>
struct Peepholes {
    const T* weights;  // or null
    bool maps;

    TBPTT_DEVICE void load(const ImageRows& rows, int i, int unit, Real<T> (&to)[3]) const {
#pragma unroll
        for (int g = 0; g < 3; ++g) to[g] = weights[maps ? std::int64_t{g} * rows.image() + i : g * rows.hidden + unit];
    }
};

// One step of all rows.
template <class T>
struct ConvStep {
    ImageRows rows;
    const std::uint8_t* is_init;   // [B] or null
    const Real<T>* products;       // [B, pixels, G·H] with b_hh; or null where the state is zeros:
    const T* b_hh;                 // [G·H] or null
    const T *h_before, *c_before;  // [B, pixels, H] or null (zeros)
    Peepholes<T> peepholes;
    T* maps;  // [B, pixels, G·H]: the convolution of x with b_ih; out = the gates, where `keeps`
    bool keeps;
    T *h, *c;      // out = [B, pixels, H], or null where they are known; c may be c_before
    T* candidate;  // out = [B, pixels, H]: its recurrent part, or null
    // out = [B, pixels, H]: the state that is carried on beside the convolution, not rounded; null where h and c are not either
    Real<T>* running;
    bool runs;  // what it holds stands in place of h_before or c_before
};

// Blocks of a grid for rows and units: an image for each of its rows.
inline Grid grid_for_images(const ImageRows& rows, std::int64_t images) {
    Grid grid = grid_for(rows.image());
    grid.y = static_cast<unsigned>(images < 65535 ? images : 65535);  // kernels stride by `gridDim.y`
    return grid;
}

template <class T, template <class> class CellOf>
__global__ void __launch_bounds__(256, 2) apply_cell(const ConvStep<T> p) {
    using V = Real<T>;
    using Cell = CellOf<ScalarMath<V>>;
    constexpr CellShape cell = Cell::shape;
    constexpr int gates = cell.gates;
    const int hidden = p.rows.hidden, values = p.rows.image();
    for (int n = static_cast<int>(blockIdx.y); n < p.rows.batch; n += static_cast<int>(gridDim.y)) {
        const bool reset = p.is_init && p.is_init[n] != 0;
        for (int i = static_cast<int>(global_index()); i < values; i += static_cast<int>(global_count())) {
            const int pixel = i / hidden, unit = i - pixel * hidden;
            const std::int64_t at = std::int64_t{n} * values + i;
            const std::int64_t gate = (std::int64_t{n} * p.rows.pixels + pixel) * (gates * hidden) + unit;
            V in[gates], rec[gates], saved[cell.saved + 1], h = 0, c = 0;
#pragma unroll
            for (int g = 0; g < gates; ++g) {
                in[g] = p.maps[gate + g * hidden];
                rec[g] = p.products && !reset ? p.products[gate + g * hidden]
                         : p.b_hh             ? V(p.b_hh[g * hidden + unit])
                                              : V(0);
            }
            const auto before = [&](const T* state) {
                return reset ? V(0) : p.runs ? p.running[at] : state ? V(state[at]) : V(0);
            };
            const V h_before = cell.candidate_apart ? before(p.h_before) : V(0);
            const V c_before = cell.has_c ? before(p.c_before) : V(0);
            if (cell.has_c && p.peepholes.weights) {
                if constexpr (cell.has_c) {
                    V weights[3];
                    p.peepholes.load(p.rows, i, unit, weights);
                    Cell::forward(in, rec, h_before, c_before, saved, h, c, weights);
                }
            } else {
                Cell::forward(in, rec, h_before, c_before, saved, h, c);
            }
            if (p.h) p.h[at] = T(h);
            if (cell.has_c && p.c) p.c[at] = T(c);
            if ((cell.has_c || cell.candidate_apart) && p.running) p.running[at] = cell.has_c ? c : h;
            if (!p.keeps) continue;
#pragma unroll
            for (int g = 0; g < gates; ++g)
                if (cell.saved > 0) p.maps[gate + g * hidden] = to_tape<T>(saved[g], cell.sigmoids >> g & 1u);
            if (cell.candidate_apart) p.candidate[at] = T(saved[gates]);
        }
    }
}

template <class T>
using ApplyCell = void (*)(ConvStep<T>);

template <class T>
ApplyCell<T> find_apply(Cell cell) {
    switch (cell) {
        case Cell::rnn_tanh: return &apply_cell<T, RnnTanh>;
        case Cell::rnn_relu: return &apply_cell<T, RnnRelu>;
        case Cell::gru: return &apply_cell<T, Gru>;
        default: return &apply_cell<T, Lstm>;
    }
}

// The arrays that every step reads, with their channels together.
template <class T>
class ConvOperands {
   public:
    ConvOperands(const ConvRecurrentLayer<T>& layer_given, const Call& call)
        : layer(layer_given),
          rows(rows_of(layer.shape)),
          step(layer.shape.batch * std::int64_t{rows.image()}),
          h0(layer.shape, layer.shape.batch, layer.shape.hidden, layer.h0, call.stream),
          c0(layer.shape, layer.shape.batch, layer.shape.hidden, layer.c0, call.stream),
          peephole_(layer.shape, layer.peephole_maps ? 3 : 0, layer.shape.hidden, layer.peephole, call.stream) {}

    Peepholes<T> peepholes() const { return {peephole_, layer.peephole_maps}; }

    const ConvRecurrentLayer<T>& layer;
    const ImageRows rows;
    const std::int64_t step;  // values of a state
    const ChannelsLast<T> h0, c0;

   private:
    const ChannelsLast<T> peephole_;
};

// Makes gates: of runs of steps by x, and then of one step after the other.
template <class T>
class ConvGates {
   public:
    ConvGates(const ConvOperands<T>& operands, const Call& call)
        : operands_(operands),
          layer_(operands.layer),
          shape_(layer_.shape),
          cell_(shape_of(shape_.cell)),
          call_(call),
          apply_(find_apply<T>(shape_.cell)),
          run_(choose_run()),
          by_state_(convolution_of(shape_, cell_.gates, shape_.batch, true), layer_.w_hh, layer_.b_hh, call),
          products_(operands.step * cell_.gates, call.stream),
          running_(is_narrow<T> && (cell_.has_c || cell_.candidate_apart) ? operands.step : 0, call.stream) {}

    std::int64_t run() const { return run_; }  // steps

    // The convolution of x with b_ih of the steps first … first+count-1 to maps [count, B, pixels, G·H].
    void convolve_inputs(std::int64_t first, std::int64_t count, T* maps) const {
        const std::int64_t images = count * shape_.batch;
        const ChannelsLast<T> x(shape_, images, shape_.inputs,
                                layer_.x + first * shape_.batch * operands_.rows.pixels * shape_.inputs, call_.stream);
        convolution_forward(ConvolutionForward<T>{convolution_of(shape_, cell_.gates, images, false), Activation::none,
                                                  x, layer_.w_ih, nullptr, layer_.b_ih, maps},
                            call_);
    }

    // Step t, into which the state `h` and `c` [B, pixels, H] goes, null for zeros; `to` says where results go. Steps are
    // asked for in their order.
    void apply(std::int64_t t, const T* h, const T* c, ConvStep<T> to) const {
        to.rows = operands_.rows;
        if (h) by_state_.run(shape_.batch, nullptr, h, products_);
        to.is_init = layer_.is_init ? layer_.is_init + t * shape_.batch : nullptr;
        to.products = h ? static_cast<const Real<T>*>(products_) : nullptr;
        to.b_hh = layer_.b_hh;
        to.h_before = h;
        to.c_before = c;
        to.running = running_;
        to.runs = running_ && t > 0;
        to.peepholes = operands_.peepholes();
        launch(apply_, grid_for_images(to.rows, shape_.batch), call_.stream, to);
    }

   private:
    // As many steps as keep a device busy, and what they leave in its cache: a long sequence need not be in memory at once.
    std::int64_t choose_run() const {
        constexpr std::int64_t each = 1 << 16;  // values of a multiprocessor
        const std::int64_t run = each * current_device().multiprocessors / (operands_.step * cell_.gates);
        return run < 1 ? 1 : run < shape_.steps ? run : shape_.steps;
    }

    const ConvOperands<T>& operands_;
    const ConvRecurrentLayer<T>& layer_;
    const ConvRecurrentShape& shape_;
    const CellShape cell_;
    const Call& call_;
    const ApplyCell<T> apply_;
    const std::int64_t run_;
    const PackedConvolution<T> by_state_;
    const Scratch<Real<T>> products_, running_;
};

}  // namespace cuda
}  // namespace tbptt
