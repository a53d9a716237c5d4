// Which instruction set runs: probed once, changeable for tests.
#pragma once

#include "api.h"

namespace tbptt {

constexpr int max_isas = 3;

// The tables that this machine can run, slowest first; returns their number.
int available_kernels(const KernelTable* tables[max_isas]);

const KernelTable& active_kernels();

// False when there is no such ISA in this build or on this machine.
bool set_active_isa(const char* name);

template <class T>
const Kernels<T>& kernels();

}  // namespace tbptt
