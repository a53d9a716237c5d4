// The gradients of a convolutional recurrent layer by its weights and by x, of dgates of all steps.
#pragma once

#include "column_sums.h"
#include "convrecurrent.h"
#include "rounding.h"
#include "states_before.h"

namespace tbptt {
namespace cuda {

// The gradient by the peepholes of each pixel, in parts of the places: i and f met the c before, o that behind it.
template <class T>
struct PeepholeSums {
    ImageRows rows;
    std::int64_t places, part;    // T·B; of one part
    const T *dgates, *c, *c0;     // [T·B, pixels, 4H], [T·B, pixels, H], [B, pixels, H] or null
    const std::uint8_t* is_init;  // [T·B] or null
    Real<T>* parts;               // out = [parts, 3, pixels, H]
};

template <class T>
__global__ void __launch_bounds__(256, 2) sum_peepholes(const PeepholeSums<T> p) {
    const int hidden = p.rows.hidden, values = p.rows.image(), batch = p.rows.batch;
    const std::int64_t first = blockIdx.y * p.part, end = p.places - first < p.part ? p.places : first + p.part;
    for (int i = static_cast<int>(global_index()); i < values; i += static_cast<int>(global_count())) {
        const int pixel = i / hidden, unit = i - pixel * hidden;
        Real<T> sums[3] = {};
        for (std::int64_t place = first; place < end; ++place) {
            const T* dgates = p.dgates + (place * p.rows.pixels + pixel) * (4 * hidden) + unit;
            const bool reset = p.is_init && p.is_init[place] != 0;
            const T* before = reset            ? nullptr
                              : place >= batch ? p.c + (place - batch) * values
                              : p.c0           ? p.c0 + place * values
                                               : nullptr;
            if (before) {
                sums[0] += Real<T>(dgates[0]) * before[i];
                sums[1] += Real<T>(dgates[hidden]) * before[i];
            }
            sums[2] += Real<T>(dgates[3 * hidden]) * p.c[place * values + i];
        }
#pragma unroll
        for (int g = 0; g < 3; ++g) p.parts[(std::int64_t{blockIdx.y} * 3 + g) * values + i] = sums[g];
    }
}

// All with their channels together.
template <class T>
struct ConvHistory {
    const T* out;                // [T·B, pixels, H]
    const T *h0, *c0;            // [B, pixels, H] or null
    const T *dgates, *dgates_x;  // [T·B, pixels, G·H]: what meets W_hh, and W_ih
};

template <class T>
class ConvGradients {
   public:
    ConvGradients(const ConvRecurrentBackward<T>& p, const ConvHistory<T>& history, const Call& call)
        : p_(p),
          shape_(p.layer.shape),
          cell_(shape_of(shape_.cell)),
          history_(history),
          rows_(rows_of(shape_)),
          places_(shape_.steps * shape_.batch),
          columns_(cell_.gates * shape_.hidden),
          call_(call) {}

    void run() const {
        by_inputs();
        by_states();
        by_bias();
        if (p_.grad_peephole) by_peepholes();
    }

   private:
    void by_inputs() const {
        const ChannelsLast<T> x(shape_, places_, shape_.inputs, p_.layer.x, call_.stream);
        const WrittenChannelsLast<T> grad_x(shape_, places_, shape_.inputs, p_.grad_x, call_.stream);
        differentiate(places_, false, x, history_.dgates_x, grad_x.data(), p_.grad_w_ih, p_.grad_b_ih);
        grad_x.finish();
    }

    void by_states() const {
        if (!history_.h0 && !p_.layer.is_init) {
            // The states before are the output, a step later; zeros before step 0 add nothing.
            const std::int64_t step = shape_.batch * rows_.pixels * columns_;
            differentiate(places_ - shape_.batch, true, history_.out, history_.dgates + step, nullptr, p_.grad_w_hh,
                          nullptr);
            return;
        }
        const Scratch<T> states(places_ * rows_.image(), call_.stream);
        const StatesBefore<T> before{places_,     shape_.batch,     rows_.image(), history_.out,
                                     history_.h0, p_.layer.is_init, states};
        launch(&find_states_before<T>, grid_for(places_ * rows_.image()), call_.stream, before);
        differentiate(places_, true, static_cast<const T*>(states), history_.dgates, nullptr, p_.grad_w_hh, nullptr);
    }

    // By both biases it is the same where no candidate stands apart.
    void by_bias() const {
        if (!p_.grad_b_hh) return;
        if (cell_.candidate_apart || !p_.grad_b_ih)
            differentiate(places_, true, history_.out, history_.dgates, nullptr, nullptr, p_.grad_b_hh);
        else
            copy_bytes(p_.grad_b_hh, p_.grad_b_ih, static_cast<std::size_t>(columns_) * sizeof(T), call_.stream);
    }

    // One convolution's gradients, null for those that are not needed.
    void differentiate(std::int64_t images, bool state, const T* x, const T* g, T* grad_x, T* grad_w, T* grad_b) const {
        convolution_backward(
            ConvolutionBackward<T>{convolution_of(shape_, cell_.gates, images, state), Activation::none, g, x,
                                   state ? p_.layer.w_hh : p_.layer.w_ih, nullptr, nullptr, grad_x, grad_w, grad_b},
            call_);
    }

    void by_peepholes() const {
        constexpr std::int64_t threads = 1 << 17, most = 64;  // for a large chip
        const std::int64_t image = rows_.image();
        std::int64_t parts = divide_up(threads, image);
        parts = parts < most ? parts : most;
        const std::int64_t part = divide_up(places_, parts < places_ ? parts : places_);
        parts = divide_up(places_, part);
        const Scratch<Real<T>> added(parts * 3 * image, call_.stream);
        const PeepholeSums<T> p{rows_,       places_,          part, history_.dgates, p_.tape.beside,
                                history_.c0, p_.layer.is_init, added};
        Grid grid = grid_for(image);
        grid.y = static_cast<unsigned>(parts);
        launch(&sum_peepholes<T>, grid, call_.stream, p);
        if (!p_.layer.peephole_maps) {
            const Sums<T> sums(p_.grad_peephole, 3 * shape_.hidden, call_);
            for (int g = 0; g < 3; ++g) by_channel(added + g * image, parts, sums.values() + g * shape_.hidden);
            return sums.finish();
        }
        const WrittenChannelsLast<T> maps(shape_, 3, shape_.hidden, p_.grad_peephole, call_.stream);
        const Sums<T> sums(maps.data(), 3 * image, call_);
        add(added, parts, 3 * image, 3 * image, sums.values());
        sums.finish();
        maps.finish();
    }

    // One gate's, of parts [parts, 3, pixels, H].
    void by_channel(const Real<T>* added, std::int64_t parts, Real<T>* to) const {
        const std::int64_t image = rows_.image();
        const Scratch<Real<T>> pixels(image, call_.stream);
        add(added, parts, image, 3 * image, pixels);
        add(pixels, rows_.pixels, shape_.hidden, shape_.hidden, to);
    }

    // to [columns]: the sums over rows of `stride`.
    void add(const Real<T>* matrix, std::int64_t rows, std::int64_t columns, std::int64_t stride, Real<T>* to) const {
        ColumnSums<Real<T>> p{};
        p.rows = rows;
        p.columns = columns;
        p.matrix = matrix;
        p.stride = stride;
        p.sums = to;
        add_columns(p, call_);
    }

    const ConvRecurrentBackward<T>& p_;
    const ConvRecurrentShape& shape_;
    const CellShape cell_;
    const ConvHistory<T> history_;
    const ImageRows rows_;
    const std::int64_t places_, columns_;
    const Call& call_;
};

}  // namespace cuda
}  // namespace tbptt
