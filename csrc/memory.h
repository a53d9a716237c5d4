// The caching allocator: first-touch page faults of a fresh tape cost more than some kernels, so big blocks are kept.
#pragma once

#include <cstddef>

namespace tbptt {

// 64-byte aligned, contents undefined; large blocks ask for huge pages where they fill them. Throws std::bad_alloc.
void* allocate(std::size_t bytes);

// Returns a block of `allocate` (or nullptr) to the cache. Any thread may release.
void release(void* block) noexcept;

// Asks for huge pages where a range fills them: for memory of others that is about to be written, and may be new.
void prefer_huge_pages(void* begin, std::size_t bytes);

struct MemoryStats {
    std::size_t in_use;  // bytes handed out
    std::size_t cached;  // bytes kept for reuse
    std::size_t peak;    // the most that was handed out at a time since `reset_memory_peak`
};
MemoryStats memory_stats();
void reset_memory_peak();

// Gives every cached block back to the system.
void empty_cache();

}  // namespace tbptt
