// Instructions beyond Highway's targets that kernels of this folder use where they are: each such
// kernel is compiled for its own target and called only if the CPU and the kernel allow it.
#pragma once

#include <string_view>

namespace moed::backend {

struct CpuFeatures {
  bool avx512_bf16 = false;  // AVX-512 F, BW, DQ, VL and BF16
  bool amx_bf16 = false;     // AMX tiles with bf16 products, and the kernel lets us use them
};

// Looks once per process. For AMX it also asks the kernel to enable the tile registers, which
// holds for all threads; a kernel that refuses means no AMX. Any thread.
const CpuFeatures& DetectCpuFeatures();

// The widest of what kernels here use on this CPU, for people: "AMX", "AVX-512", "AVX2", ...
std::string_view InstructionSetName();

}  // namespace moed::backend
