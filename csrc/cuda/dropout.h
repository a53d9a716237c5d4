// Dropout by a counter-based generator, Philox 4x32-10 (Salmon, Moraes, Dror and Shaw 2011), with the CPU's mask
// (../cpu/dropout.h): whether an element is kept depends on the key and its index only.
#pragma once

#include "api.h"

namespace tbptt {
namespace cuda {

struct PhiloxWords {
    std::uint32_t word[4];
};

// Of the counter (counter, 0).
TBPTT_DEVICE PhiloxWords philox(std::uint64_t counter, std::uint64_t key) {
    PhiloxWords s{{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0}};
    std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{s.word[0]} * 0xD2511F53u, b = std::uint64_t{s.word[2]} * 0xCD9E8D57u;
        s = {{static_cast<std::uint32_t>(b >> 32) ^ s.word[1] ^ k0, static_cast<std::uint32_t>(b),
              static_cast<std::uint32_t>(a >> 32) ^ s.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return s;
}

template <class T>
struct DroppedElements {
    Dropout<T> p;
    std::uint32_t threshold;  // words below it drop their elements
    T scale;
};

// A thread has the four words of a counter: word w of counter 8·b + i is that of element 32·b + 8·w + i. A dropped element is
// 0 whatever it was.
template <class T>
__global__ void drop_elements(const DroppedElements<T> p) {
    const std::int64_t counters = (p.p.count + 31) / 32 * 8;
    for (std::int64_t counter = global_index(); counter < counters; counter += global_count()) {
        const PhiloxWords drawn = philox(static_cast<std::uint64_t>(counter), p.p.key);
        const std::int64_t first = counter / 8 * 32 + counter % 8;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const std::int64_t i = first + 8 * w;
            if (i < p.p.count) p.p.y[i] = drawn.word[w] >= p.threshold ? p.p.x[i] * p.scale : T(0);
        }
    }
}

template <class T>
void dropout(const Dropout<T>& p, const Call& call) {
    launch(&drop_elements<T>, grid_for(divide_up(p.count, 32) * 8), call.stream,
           DroppedElements<T>{p, static_cast<std::uint32_t>(p.p * 4294967296.0), static_cast<T>(1 / (1 - p.p))});
}

}  // namespace cuda
}  // namespace tbptt
