// Convolutions whose groups are too small for products: every channel meets only itself or few others.
#pragma once

#include "depthwise_first.h"
#include "depthwise_last.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr double work_of_a_meeting = 2;  // of two pixels, in units of `threads_for`

TBPTT_INLINE bool is_depthwise(const ConvolutionShape& s) {
    return s.groups > 1 && s.groups == s.inputs &&
           (s.algorithm == Algorithm::automatic || s.algorithm == Algorithm::direct);
}

// With channels last, images of one dimension are walked down, where tiles have their rows.
TBPTT_INLINE Passage passage(const ConvolutionShape& s, bool to_big) {
    const bool flat = s.height == 1 && s.out_height == 1 && s.kernel_height == 1 && s.pad_top == 0;
    return flat && s.channels_last ? Passage(s, horizontal(s), vertical(s), to_big)
                                   : Passage(s, vertical(s), horizontal(s), to_big);
}

template <class Sum>
void run_sum(const Sum& sum, int64_t batch, int threads) {
    const int64_t parts = sum.parts(), blocks = choose_blocks(batch * parts, sum.units(), threads);
    Tasks tasks(batch * parts * blocks, threads);
    run_parallel(threads, [&](const Worker& worker) {
        tasks.run(worker, [&](int64_t i) {
            sum.make(worker, i / blocks / parts, i / blocks % parts, Block{i % blocks, blocks});
        });
    });
}

// The gradients by w and b, from what meets in both images. With `data`, which reads one of the images too, it is made
// meanwhile, a section after another, so that the image is read once.
template <class Gradient, class Sum>
void run_gradient(const Gradient& gradient, const Sum* data, int64_t batch, int threads) {
    const Cut cut = gradient.cut();
    const int64_t blocks = gradient.blocks(choose_blocks(cut.chunks, gradient.units(), threads));
    Tasks tasks(cut.chunks * blocks, threads);
    run_parallel(threads, [&](const Worker& worker) {
        tasks.run(worker, [&](int64_t task) {
            const int64_t chunk = task / blocks;
            const Block block{task % blocks, blocks};
            const Range sections = split(batch * cut.sections, chunk, cut.chunks);
            gradient.begin(worker, chunk, block);
            for (int64_t i = sections.begin; i < sections.end; ++i) {
                const int64_t n = i / cut.sections, section = i % cut.sections;
                const Range made = data ? split(data->parts(), section, cut.sections) : Range{0, 0};
                for (int64_t part = made.begin; part < made.end; ++part) data->make(worker, n, part, block);
                const Range read = split(gradient.parts(), section, cut.sections);
                for (int64_t part = read.begin; part < read.end; ++part) gradient.add(worker, chunk, n, part, block);
            }
            gradient.end(worker, chunk, block);
        });
        wait_for_all(worker);
        gradient.write(worker);
    });
}

// target = f(bias + Σ w·source), the target being the big image or the small one
template <class T>
void depthwise_sum(const ConvolutionShape& s, bool to_big, const T* source, const T* w, const T* bias,
                   Activation activation, T* target) {
    const Passage way = passage(s, to_big);
    const int threads = threads_for(work_of_a_meeting * way.meetings());
    s.channels_last ? run_sum(SumLast<T>(way, source, w, bias, activation, target, threads), s.batch, threads)
                    : run_sum(SumFirst<T>(way, source, w, bias, activation, target, threads), s.batch, threads);
}

// The gradients by w and b, which may be null, from the big image and the small one; and `target`, unless it is null, made
// of one of them with w.
template <class T>
void depthwise_gradients(const ConvolutionShape& s, const T* big, const T* small, bool to_big, const T* w, T* target,
                         T* grad_w, T* grad_b) {
    const T* source = to_big ? small : big;
    if (!grad_w && !grad_b) {
        if (target) depthwise_sum<T>(s, to_big, source, w, nullptr, Activation::none, target);
        return;
    }
    const Passage forward = passage(s, false), way = passage(s, to_big);
    const int threads = threads_for((target ? 2 : 1) * work_of_a_meeting * forward.meetings());
    const auto run = [&](const auto& gradient, auto make_sum) {
        using Sum = decltype(make_sum());
        if (!target) return run_gradient(gradient, static_cast<const Sum*>(nullptr), s.batch, threads);
        const Sum data = make_sum();
        run_gradient(gradient, &data, s.batch, threads);
    };
    if (s.channels_last)
        run(GradientLast<T>(forward, big, small, grad_w, grad_b, threads),
            [&] { return SumLast<T>(way, source, w, nullptr, Activation::none, target, threads); });
    else
        run(GradientFirst<T>(forward, big, small, grad_w, grad_b, threads),
            [&] { return SumFirst<T>(way, source, w, nullptr, Activation::none, target, threads); });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
