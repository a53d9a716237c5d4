// Dropout by a counter-based generator, Philox 4x32-10 (Salmon, Moraes, Dror and Shaw 2011): whether an element is kept
// depends on the key and its index only, so the backward pass draws the mask again and nobody stores it.
#pragma once

#include "../api.h"
#include "intrinsics.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int64_t drawn_together = 32;  // elements; element 32·b + 8·w + i gets word w of counter 8·b + i

typedef std::uint32_t Words __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2)));
typedef std::uint32_t UnalignedWords __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2), aligned(4), may_alias));
using Word64 = LowHalves;  // a word of 32 bits in the low half of every lane; the high half is not looked at

struct PhiloxState {
    Word64 word[4];
};

// Four words of each of the counters (counter, 0), one in a lane.
TBPTT_INLINE PhiloxState philox(Word64 counter, std::uint64_t key) {
    constexpr std::uint64_t low = 0xffffffff;
    PhiloxState s{{counter, counter >> 32, Word64{}, Word64{}}};
    std::uint64_t k0 = key & low, k1 = key >> 32;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const Word64 a = multiply_low_halves(s.word[0], 0xD2511F53), b = multiply_low_halves(s.word[2], 0xCD9E8D57);
        s = {{(b >> 32) ^ s.word[1] ^ k0, b, (a >> 32) ^ s.word[3] ^ k1, a}};
        k0 = (k0 + 0x9E3779B9) & low;
        k1 = (k1 + 0xBB67AE85) & low;
    }
    return s;
}

// words[i] is that of element 32·block + i.
TBPTT_INLINE void draw_words(std::uint64_t block, std::uint64_t key, std::uint32_t* words) {
    constexpr int L = lanes<double>;
    for (int first = 0; first < 8; first += L) {
        Word64 counter;
        for (int i = 0; i < L; ++i) counter[i] = 8 * block + static_cast<std::uint64_t>(first + i);
        const PhiloxState s = philox(counter, key);
        for (int w = 0; w < 4; ++w)
            *reinterpret_cast<UnalignedWords*>(words + 8 * w + first) = __builtin_convertvector(s.word[w], Words);
    }
}

// All bits set where an element is kept: its word is not below the threshold.
TBPTT_INLINE VecBits<float> kept(const std::uint32_t* words, std::uint32_t threshold, float) {
    typedef std::uint32_t Whole __attribute__((vector_size(TBPTT_VECTOR_BYTES), aligned(4), may_alias));
    return (VecBits<float>)(*reinterpret_cast<const Whole*>(words) >= threshold);
}

TBPTT_INLINE VecBits<double> kept(const std::uint32_t* words, std::uint32_t threshold, double) {
    const auto wide = __builtin_convertvector(*reinterpret_cast<const UnalignedWords*>(words), LowHalves);
    return (VecBits<double>)(wide >= static_cast<std::uint64_t>(threshold));
}

// A dropped element is 0 whatever it was: it is selected, not multiplied by zero.
template <class T>
void dropout(const Dropout<T>& p) {
    constexpr double cost_of_an_element = 10;
    const std::uint32_t threshold = static_cast<std::uint32_t>(p.p * 4294967296.0);
    const T scale = static_cast<T>(1 / (1 - p.p));
    run_parallel(threads_for(cost_of_an_element * static_cast<double>(p.count)), [&](const Worker& worker) {
        const Range mine = split(ceil_div(p.count, drawn_together), worker);
        std::uint32_t words[drawn_together];
        for (int64_t block = mine.begin; block < mine.end; ++block) {
            draw_words(static_cast<std::uint64_t>(block), p.key, words);
            for (int64_t i = 0; i < drawn_together; i += lanes<T>) {
                const int64_t first = block * drawn_together + i, count = p.count - first;
                if (count <= 0) break;
                const Vec<T> scaled = load_partial(p.x + first, count) * scale;
                store_partial(p.y + first, (Vec<T>)((VecBits<T>)scaled & kept(words + i, threshold, T())), count);
            }
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
