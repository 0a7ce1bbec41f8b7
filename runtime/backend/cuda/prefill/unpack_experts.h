// bf12 experts turned into bf16 blobs in device memory, for kernels that want whole matrices: long
// prompts, and shapes without kernels of their own. Every bit comes back.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "runtime/backend/expert_format.h"

namespace moed::backend {

inline constexpr int kMaxUnpacked = 32;

struct UnpackExpertsArguments {
  const std::byte* blobs[kMaxUnpacked] = {};  // device memory, or mapped host memory
  int num_experts = 0;
  std::byte* target = nullptr;  // bf16 blobs, one after the other
  size_t target_bytes = 0;      // of one
  int hidden = 0;
  int intermediate = 0;
  int target_row_values = 0;
  int list_bytes = 0;  // of the list of escapes behind every 32 neurons
};

// Of a bf12 `format` and the bf16 one of the same shape; without blobs and target.
UnpackExpertsArguments UnpackArguments(const ExpertFormat& format, const ExpertFormat& target);

cudaError_t LaunchUnpackExperts(const UnpackExpertsArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
