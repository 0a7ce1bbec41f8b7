// How fast memory is: what the limits of the decode benchmark are made of. Measured by plain reads
// in the benchmark's own process, nothing else running on device or CPU.
#pragma once

#include "runtime/backend/backend.h"

namespace moed {

// Bytes per second.
struct MemoryRates {
  double vram = 0;  // a kernel reads VRAM
  double link = 0;  // a kernel reads host memory
  double both = 0;  // a kernel and CPU threads read host memory at the same time
};

// Takes 2 GiB of VRAM and as much pinned host memory for as long as it runs; prints what it finds.
MemoryRates MeasureMemoryRates(backend::Backend& backend);

}  // namespace moed
