// The functions of runtime.h and machine.h on a GPU.
#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <tuple>

#include "machine.h"
#include "runtime.h"

namespace tbptt {
namespace cuda {

namespace {

constexpr int most_devices = 64;
constexpr std::uint64_t kept_bytes = std::uint64_t{1} << 30;  // of a pool, beyond the calls that asked for them
constexpr std::size_t shared_without_asking = std::size_t{48} << 10;

std::atomic<std::size_t> allocations{0};

// What is known of a device; read when it is first used.
struct Known {
    std::once_flag described, pooled;
    Device device{};
    cudaMemPool_t pool = nullptr;
};

std::array<Known, most_devices> known_devices;

int current_index() {
    int index = 0;
    check(cudaGetDevice(&index), "cudaGetDevice");
    if (index >= most_devices) throw std::runtime_error("expected fewer than 64 devices");
    return index;
}

int attribute(cudaDeviceAttr name, int index) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
    return value;
}

// A pool of its own: the default one gives its memory back whenever the device is waited for, and belongs to everybody.
cudaMemPool_t current_pool() {
    const int index = current_index();
    Known& known = known_devices[static_cast<std::size_t>(index)];
    std::call_once(known.pooled, [&] {
        cudaMemPoolProps properties{};
        properties.allocType = cudaMemAllocationTypePinned;
        properties.location.type = cudaMemLocationTypeDevice;
        properties.location.id = index;
        cudaMemPool_t pool = nullptr;
        check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
        std::uint64_t kept = kept_bytes;
        check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "cudaMemPoolSetAttribute");
        known.pool = pool;
    });
    return known.pool;
}

// Answers about kernels, which are asked for at every launch.
class Answers {
   public:
    // Calls raise() where the kernel was not allowed as many bytes before; others wait until it is.
    template <class Raise>
    void allow_shared_bytes(int device, const void* kernel, std::size_t bytes, const Raise& raise) {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::size_t& allowed = shared_bytes_[{device, kernel}];
        if (bytes <= allowed) return;
        raise();
        allowed = bytes;
    }

    // The number that `ask` gave for this kernel, as a launch of blocks or of clusters (0: none).
    template <class Ask>
    int at_work(int device, const void* kernel, const Grid& grid, const Ask& ask) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto key = std::make_tuple(device, kernel, grid.threads, grid.shared_bytes, grid.cluster);
        const auto found = at_work_.find(key);
        if (found != at_work_.end()) return found->second;
        return at_work_[key] = ask();
    }

   private:
    std::mutex mutex_;
    std::map<std::pair<int, const void*>, std::size_t> shared_bytes_;
    std::map<std::tuple<int, const void*, unsigned, std::size_t, unsigned>, int> at_work_;
};

Answers& answers() {
    static Answers instance;
    return instance;
}

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Whether this build has code for the current device, and of which kind, is known when a kernel of it is looked at.
struct Nothing {};
__global__ void no_work(const Nothing) {}

cudaError_t find_code(cudaFuncAttributes& code) {
    return cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(&no_work));
}

int capability_of(int index) {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor, index) +
           attribute(cudaDevAttrComputeCapabilityMinor, index);
}

}  // namespace

void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // it is told here, not to whoever asks next
    if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

const Device& current_device() {
    const int index = current_index();
    Known& known = known_devices[static_cast<std::size_t>(index)];
    std::call_once(known.described, [&] {
        cudaFuncAttributes code{};
        check(find_code(code), "cudaFuncGetAttributes");
        // PTX of an older chip, which the driver has translated, does no more than that one: it knows no clusters, say.
        known.device = {attribute(cudaDevAttrMultiProcessorCount, index),
                        static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index)),
                        std::min(capability_of(index), code.ptxVersion)};
    });
    return known.device;
}

void* allocate(std::size_t bytes, Stream stream) {
    void* memory = nullptr;
    check(cudaMallocFromPoolAsync(&memory, bytes, current_pool(), stream), "cudaMallocFromPoolAsync");
    ++allocations;
    return memory;
}

void release(void* memory, Stream stream) noexcept {
    // Fails where an earlier error ended the context, which the next call tells.
    if (cudaFreeAsync(memory, stream) != cudaSuccess) cudaGetLastError();
    --allocations;
}

void set_bytes(void* memory, int value, std::size_t bytes, Stream stream) {
    if (bytes > 0) check(cudaMemsetAsync(memory, value, bytes, stream), "cudaMemsetAsync");
}

void copy_bytes(void* to, const void* from, std::size_t bytes, Stream stream) {
    if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
}

void allow_shared_bytes(const void* kernel, std::size_t bytes) {
    if (bytes <= shared_without_asking) return;
    answers().allow_shared_bytes(current_index(), kernel, bytes, [&] {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
              "cudaFuncSetAttribute");
    });
}

int blocks_together(const void* kernel, unsigned threads, std::size_t shared_bytes) {
    allow_shared_bytes(kernel, shared_bytes);
    const int multiprocessors = current_device().multiprocessors;
    Grid grid;
    grid.threads = threads;
    grid.shared_bytes = shared_bytes;
    return answers().at_work(current_index(), kernel, grid, [&] {
        int blocks = 0;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(threads), shared_bytes),
              "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
        return blocks * multiprocessors;
    });
}

int clusters_together(const void* kernel, const Grid& grid) {
    if (current_device().capability < 90) return 0;
    allow_shared_bytes(kernel, grid.shared_bytes);
    return answers().at_work(current_index(), kernel, grid, [&] {
        constexpr unsigned portable = 8;
        if (grid.cluster > portable)
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                  "cudaFuncSetAttribute");
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(grid.cluster);
        config.blockDim = dim3(grid.threads);
        config.dynamicSmemBytes = grid.shared_bytes;
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {grid.cluster, 1, 1};
        config.attrs = &attribute;
        config.numAttrs = 1;
        int clusters = 0;
        if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
        cudaGetLastError();  // no such cluster
        return 0;
    });
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess) cudaGetLastError();
    return version;
}

const char* build_targets() { return TBPTT_CUDA_TARGETS; }

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();
    return 0;
}

std::string why_not() {
    const int driver = driver_version();
    if (driver == 0) return "no NVIDIA driver was found";
    if (driver / 1000 < runtime_version() / 1000)
        return "the NVIDIA driver is too old: it knows CUDA " + version_text(driver) + ", this build needs " +
               std::to_string(runtime_version() / 1000) + ".0";
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        cudaGetLastError();
        return "no CUDA device was found";
    }
    try {
        check(error, "cudaGetDeviceCount");
        const int index = current_index();
        if (!attribute(cudaDevAttrMemoryPoolsSupported, index))
            return "device " + std::to_string(index) + " has no memory pools";
        cudaFuncAttributes code{};
        const cudaError_t image = find_code(code);
        if (image == cudaErrorNoKernelImageForDevice || image == cudaErrorUnsupportedPtxVersion ||
            image == cudaErrorInvalidDeviceFunction) {
            cudaGetLastError();
            const int capability = capability_of(index);
            return "this build has kernels for " + std::string(build_targets()) + ", none for compute capability " +
                   std::to_string(capability / 10) + "." + std::to_string(capability % 10);
        }
        check(image, "cudaFuncGetAttributes");
    } catch (const std::exception& problem) {
        return problem.what();
    }
    return {};
}

DeviceDescription describe_device(int index) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    return {properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
            properties.totalGlobalMem};
}

int device_of(const void* memory) {
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    return on_device ? attributes.device : -1;
}

OnDevice::OnDevice(int device) : before_(current_index()), device_(device < 0 ? before_ : device) {
    if (device_ != before_) check(cudaSetDevice(device_), "cudaSetDevice");
}

OnDevice::~OnDevice() {
    if (device_ != before_ && cudaSetDevice(before_) != cudaSuccess) cudaGetLastError();
}

void wait_for(Stream stream, Stream other) {
    if (stream == other) return;
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    cudaError_t error = cudaEventRecord(event, other);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(stream, event, 0);
    cudaEventDestroy(event);  // takes place when the event has come
    check(error, "cudaStreamWaitEvent");
}

std::size_t live_allocations() { return allocations; }

void empty_cache() { check(cudaMemPoolTrimTo(current_pool(), 0), "cudaMemPoolTrimTo"); }

}  // namespace cuda
}  // namespace tbptt
