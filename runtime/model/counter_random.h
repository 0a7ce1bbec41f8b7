// Random numbers without state: a draw is a function of (seed, index). Any thread.
#pragma once

#include <cstdint>

namespace moed::model {

// Uniform in [0, 1) with 53 random bits: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As
// Easy as 1, 2, 3", SC 2011) with `seed` as key and `index` as counter.
double UniformDraw(uint64_t seed, uint64_t index);

}  // namespace moed::model
