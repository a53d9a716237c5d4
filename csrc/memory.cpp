// The caching allocator of memory.h: size classes at eighths of powers of two, a bounded cache, one mutex.
#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace tbptt {

namespace {

constexpr std::size_t alignment = 64;
constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t huge_from = std::size_t{5} << 18;  // less of a huge page is not worth the rest of it
constexpr std::size_t cache_limit = std::size_t{1} << 30;

#if defined(TBPTT_WITHOUT_CACHE)
constexpr bool caching = false;
#else
constexpr bool caching = true;
#endif

struct Header {  // lies in the `alignment` bytes before the block
    void* base;
    std::size_t capacity;
};
static_assert(sizeof(Header) <= alignment, "the header must fit before an aligned block");

Header& header_of(void* block) { return *reinterpret_cast<Header*>(static_cast<char*>(block) - alignment); }

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

// Eighths of powers of two waste at most a ninth and make blocks of similar calls interchangeable.
std::size_t size_class(std::size_t bytes) {
    if (!caching) return round_up(bytes ? bytes : 1, 8);
    std::size_t power = 256;
    while (power < bytes) power *= 2;
    return power <= 256 ? 256 : round_up(bytes, power / 16);
}

struct Cache {
    std::mutex mutex;
    std::map<std::size_t, std::vector<void*>> blocks;
    std::size_t cached = 0, in_use = 0, peak = 0;

    void use(std::size_t bytes) {
        in_use += bytes;
        if (in_use > peak) peak = in_use;
    }
};

Cache& cache() {
    static Cache* instance = [] {
        static Cache* made = new Cache;  // never destroyed: arrays may die after static destructors ran
#if defined(__linux__) || defined(__APPLE__)
        pthread_atfork([] { made->mutex.lock(); }, [] { made->mutex.unlock(); }, [] { made->mutex.unlock(); });
#endif
        return made;
    }();
    return *instance;
}

void* fresh(std::size_t capacity) {
    const std::size_t total = round_up(capacity + alignment, alignment), behind = total % huge_page;
    const std::size_t huge = total - behind + (behind >= huge_from ? huge_page : 0);
    void* base =
        huge ? std::aligned_alloc(huge_page, round_up(total, huge_page)) : std::aligned_alloc(alignment, total);
    if (!base) throw std::bad_alloc();
#if defined(__linux__)
    if (huge) madvise(base, huge, MADV_HUGEPAGE);
#endif
    void* block = static_cast<char*>(base) + alignment;
    header_of(block) = Header{base, capacity};
    return block;
}

}  // namespace

void prefer_huge_pages(void* begin, std::size_t bytes) {
#if defined(__linux__)
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t first = round_up(address, huge_page), end = (address + bytes) / huge_page * huge_page;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)begin, (void)bytes;
#endif
}

void* allocate(std::size_t bytes) {
    if (bytes > std::numeric_limits<std::size_t>::max() / 4) throw std::bad_alloc();
    const std::size_t capacity = size_class(bytes);
    Cache& all = cache();
    if (caching) {
        std::lock_guard<std::mutex> lock(all.mutex);
        const auto found = all.blocks.find(capacity);
        if (found != all.blocks.end() && !found->second.empty()) {
            void* block = found->second.back();
            found->second.pop_back();
            all.cached -= capacity;
            all.use(capacity);
            return block;
        }
    }
    void* block;
    try {
        block = fresh(capacity);
    } catch (const std::bad_alloc&) {
        empty_cache();  // kept blocks of other sizes may be what is missing
        block = fresh(capacity);
    }
    std::lock_guard<std::mutex> lock(all.mutex);
    all.use(capacity);
    return block;
}

void release(void* block) noexcept {
    if (!block) return;
    const Header header = header_of(block);
    Cache& all = cache();
    {
        std::lock_guard<std::mutex> lock(all.mutex);
        all.in_use -= header.capacity;
        if (caching && all.cached + header.capacity <= cache_limit) {
            try {
                all.blocks[header.capacity].push_back(block);
                all.cached += header.capacity;
                return;
            } catch (const std::bad_alloc&) {
            }  // no room to remember it: free it instead
        }
    }
    std::free(header.base);
}

MemoryStats memory_stats() {
    Cache& all = cache();
    std::lock_guard<std::mutex> lock(all.mutex);
    return {all.in_use, all.cached, all.peak};
}

void reset_memory_peak() {
    Cache& all = cache();
    std::lock_guard<std::mutex> lock(all.mutex);
    all.peak = all.in_use;
}

void empty_cache() {
    Cache& all = cache();
    std::lock_guard<std::mutex> lock(all.mutex);
    for (auto& [capacity, blocks] : all.blocks) {
        for (void* block : blocks) std::free(header_of(block).base);
        all.cached -= capacity * blocks.size();
        blocks.clear();
    }
}

}  // namespace tbptt
