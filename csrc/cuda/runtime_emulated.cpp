// The functions of runtime.h and machine.h over host memory. Fresh memory is full of NaN; what is released is, too.
#include "runtime_emulated.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

namespace tbptt {
namespace cuda {

namespace {

struct Place {
    const char* begin;
    const char* end;
    int device;
};

struct Machine {
    std::mutex mutex;
    Device device{3, std::size_t{96} << 10, 90};
    int blocks = 1;
    std::map<void*, std::size_t> live;
    std::vector<Place> places;
    std::vector<Wait> waits;
};

Machine& machine() {
    static Machine instance;
    return instance;
}

constexpr std::size_t alignment = 256;  // as cudaMalloc's

thread_local int device_at_work = 0;

}  // namespace

void set_emulated_device(const Device& device, int blocks) {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    machine().device = device;
    machine().blocks = blocks;
}

void place_on_device(const void* memory, std::size_t bytes, int device) {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    const char* begin = static_cast<const char*>(memory);
    std::vector<Place>& places = machine().places;
    const auto same = [&](const Place& place) { return place.begin == begin; };
    places.erase(std::remove_if(places.begin(), places.end(), same), places.end());
    if (bytes > 0) places.push_back({begin, begin + bytes, device});
}

std::size_t take_waits(Wait* to, std::size_t most) {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    std::vector<Wait>& waits = machine().waits;
    const std::size_t count = std::min(most, waits.size());
    std::copy_n(waits.begin(), count, to);
    waits.clear();
    return count;
}

const Device& current_device() { return machine().device; }

void* allocate(std::size_t bytes, Stream) {
    if (bytes > std::numeric_limits<std::size_t>::max() - alignment) throw std::bad_alloc();
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, std::max(rounded, alignment));
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);
    const std::lock_guard<std::mutex> lock(machine().mutex);
    machine().live[memory] = bytes;
    return memory;
}

void release(void* memory, Stream) noexcept {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    const auto found = machine().live.find(memory);
    if (found == machine().live.end()) std::abort();  // released twice, or never allocated
    std::memset(memory, 0xff, found->second);
    machine().live.erase(found);
    std::free(memory);
}

void set_bytes(void* memory, int value, std::size_t bytes, Stream) {
    if (bytes > 0) std::memset(memory, value, bytes);
}

void copy_bytes(void* to, const void* from, std::size_t bytes, Stream) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}

int blocks_together(const void*, unsigned, std::size_t shared_bytes) {
    const Device& device = current_device();
    return shared_bytes > device.shared_bytes ? 0 : device.multiprocessors * machine().blocks;
}

int clusters_together(const void*, const Grid& grid) {
    const Device& device = current_device();
    const bool fits = device.capability >= 90 && grid.cluster <= 16 && grid.shared_bytes <= device.shared_bytes;
    if (!fits) return 0;
    // One cluster is at work on any device, so that small ones can be tested.
    return std::max(1, device.multiprocessors * machine().blocks / static_cast<int>(grid.cluster));
}

void check_launch(const Grid& grid) {
    const auto expect = [](bool holds, const char* what) {
        if (!holds) throw std::logic_error(std::string("a kernel's launch: ") + what);
    };
    expect(grid.threads >= 1 && grid.threads <= 1024, "expected 1 to 1024 threads a block");
    expect(grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535, "too many blocks");
    expect(grid.shared_bytes <= current_device().shared_bytes, "more shared memory than a block may have");
    const unsigned cluster = std::max(1u, grid.cluster);
    expect(grid.x % cluster == 0 && (grid.cluster == 0 || clusters_together(nullptr, grid) > 0),
           "a cluster that does not fit");
    if (!grid.together) return;
    const std::int64_t clusters = std::int64_t{grid.x / cluster} * grid.y * grid.z;
    expect(clusters <= (grid.cluster > 0 ? clusters_together(nullptr, grid)
                                         : blocks_together(nullptr, grid.threads, grid.shared_bytes)),
           "more blocks together than are at work at the same time");
}

std::string why_not() { return {}; }
int runtime_version() { return 0; }
int driver_version() { return 0; }
const char* build_targets() { return "emulated"; }
int device_count() { return 1; }

DeviceDescription describe_device(int) {
    const Device& device = current_device();
    return {"emulated", device.capability, device.multiprocessors, 0};
}

int device_of(const void* memory) {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    const char* address = static_cast<const char*>(memory);
    for (const Place& place : machine().places)
        if (address >= place.begin && address < place.end) return place.device;
    return 0;
}

OnDevice::OnDevice(int device) : before_(device_at_work), device_(device < 0 ? before_ : device) {
    device_at_work = device_;
}
OnDevice::~OnDevice() { device_at_work = before_; }

void wait_for(Stream stream, Stream other) {
    if (stream == other) return;
    const std::lock_guard<std::mutex> lock(machine().mutex);
    machine().waits.push_back({stream, other, device_at_work});
}

std::size_t live_allocations() {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    return machine().live.size();
}

void empty_cache() {}

}  // namespace cuda
}  // namespace tbptt
