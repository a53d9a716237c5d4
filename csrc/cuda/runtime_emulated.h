// What tests change of the emulated device.
#pragma once

#include "machine.h"

namespace tbptt {
namespace cuda {

// Later calls find such a device; `blocks` are at work on a multiprocessor at the same time.
void set_emulated_device(const Device& device, int blocks);

// So many bytes from this address on count as memory of `device`, which is 0 elsewhere; with no bytes, no longer.
void place_on_device(const void* memory, std::size_t bytes, int device);

// All waits since the last call, oldest first: who waited, for whom, and whose default streams were meant.
struct Wait {
    Stream stream, other;
    int device;
};
std::size_t take_waits(Wait* to, std::size_t most);

}  // namespace cuda
}  // namespace tbptt
