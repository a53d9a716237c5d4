// The machine as the bindings see it: whether it has a device that can be used, which one is current, and whose memory an
// address is.
#pragma once

#include <cstddef>
#include <string>

#include "runtime.h"

namespace tbptt {
namespace cuda {

// Why no kernel can run here; empty if one can.
std::string why_not();

int runtime_version();        // 13000 for 13.0, that the kernels were built with
int driver_version();         // the newest that the driver knows; 0 without one
const char* build_targets();  // such as "75;80;90a;90-virtual"

struct DeviceDescription {
    std::string name;
    int capability, multiprocessors;
    std::size_t memory_bytes;
};
int device_count();  // 0 where there is none, or no driver
DeviceDescription describe_device(int index);

// The device whose memory this is, or -1: no device's, or none that is known.
int device_of(const void* memory);

// `device` is current as long as this lives; with -1 the one that is stays.
class OnDevice {
   public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

   private:
    int before_, device_;
};

// Work on `stream` begins after what was put on `other` until now.
void wait_for(Stream stream, Stream other);

// Blocks that were allocated and not yet released.
std::size_t live_allocations();

// Gives memory that is kept for the next calls back to the current device.
void empty_cache();

}  // namespace cuda
}  // namespace tbptt
