// The forms of packed_weights.h: a list, which stays short, behind a mutex.
#include "packed_weights.h"

#include <deque>
#include <mutex>

#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "memory.h"

namespace tbptt {

namespace {

bool operator==(const WeightForm& a, const WeightForm& b) {
    return a.kernel == b.kernel && a.lanes == b.lanes && a.vectors == b.vectors && a.groups == b.groups &&
           a.depth == b.depth && a.columns == b.columns && a.elements == b.elements;
}

struct Entry {
    WeightForm form;
    std::size_t bytes;
    void* data;
    bool claimed, filled;
};

// One for all weights, since it is held for moments only and a fork has to wait for it: a child whose parent's other
// threads held one would wait forever. What they had claimed stays claimed in the child, which then works without it.
std::mutex& forms_mutex() {
    static std::mutex& instance = *[] {
        static std::mutex* made = new std::mutex;
#if defined(__linux__) || defined(__APPLE__)
        pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
#endif
        return made;
    }();
    return instance;
}

}  // namespace

class PackedWeights {
   public:
    ~PackedWeights() {
        for (const Entry& entry : entries_) release(entry.data);
    }

    ClaimedForm claim(const WeightForm& form, std::size_t bytes) {
        Entry* entry;
        {
            const std::lock_guard<std::mutex> lock(forms_mutex());
            entry = find(form);
            if (!entry) {
                entries_.push_back({form, bytes, nullptr, false, false});
                entry = &entries_.back();
            }
            if (entry->filled) return {entry->data, true};
            if (entry->claimed) return {nullptr, false};
            entry->claimed = true;
        }
        if (!entry->data) {  // without the lock: the allocator has its own, and a fork takes both
            try {
                entry->data = allocate(bytes);
            } catch (...) {
                give_back(form, false);
                throw;
            }
        }
        return {entry->data, false};
    }

    void give_back(const WeightForm& form, bool filled) {
        const std::lock_guard<std::mutex> lock(forms_mutex());
        Entry* entry = find(form);
        entry->claimed = false;
        entry->filled = filled;
    }

    std::size_t size() const {
        const std::lock_guard<std::mutex> lock(forms_mutex());
        std::size_t bytes = 0;
        for (const Entry& entry : entries_) bytes += entry.filled ? entry.bytes : 0;
        return bytes;
    }

   private:
    Entry* find(const WeightForm& form) {
        for (Entry& entry : entries_)
            if (entry.form == form) return &entry;
        return nullptr;
    }

    std::deque<Entry> entries_;
};

PackedWeights* make_packed_weights() { return new PackedWeights; }

void destroy_packed_weights(PackedWeights* weights) noexcept { delete weights; }

std::size_t size_in_bytes(const PackedWeights& weights) { return weights.size(); }

ClaimedForm claim(PackedWeights& weights, const WeightForm& form, std::size_t bytes) {
    return weights.claim(form, bytes);
}

void give_back(PackedWeights& weights, const WeightForm& form, bool filled) noexcept {
    weights.give_back(form, filled);
}

}  // namespace tbptt
