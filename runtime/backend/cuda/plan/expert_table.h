// The table of which expert lies in which VRAM slot, in device memory, and the kernel that reads
// it: from a layer's routing to the list of tasks that the expert kernels take, and to the trace of
// what was used from where (backend/device_experts.h).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "runtime/backend/device_experts.h"

namespace moed::backend {

struct ExpertTableEntry {
  int32_t slot = -1;
  uint32_t generation = 0;
  uint32_t fill_allowed = 0;  // 0: no; else 1 and how often it waited since (FillFits)
};

struct OfferedSlot {
  int32_t slot = -1;
  uint32_t generation = 0;
  int32_t expert = -1;  // that may lie in it; negative: none
};

// One layer's part of the table; device pointers.
struct ExpertTableLayer {
  ExpertTableEntry* entries = nullptr;  // [experts]
  OfferedSlot* offered = nullptr;       // [max_offered]
  int32_t* num_offered = nullptr;       // [1]
  ExpertUse* uses = nullptr;            // [experts], of the last step
  const std::byte* experts = nullptr;   // of the layer, in mapped host memory
  int32_t num_experts = 0;
  int32_t max_offered = 0;
};

struct PlanExpertsArguments {
  ExpertTableLayer layer;
  std::byte* slots = nullptr;
  size_t blob_bytes = 0;
  int tiles_per_expert = 0;
  const int32_t* ids = nullptr;        // [rows, top_k]
  const float* weights = nullptr;      // [rows, top_k]
  const int32_t* positions = nullptr;  // [rows], -1 for padding
  int rows = 0;
  int top_k = 0;
  int joined_tasks = 0;       // of ExpertTilesArguments
  int joined_link_tasks = 0;  // the same for experts in mapped host memory; 0: none
  ExpertTaskList* list = nullptr;
  // Each with room for experts + rows * top_k / kTaskTokens.
  ExpertTask* vram_tasks = nullptr;
  ExpertTask* link_tasks = nullptr;
};

// One block. Can be captured in a graph.
cudaError_t LaunchPlanExperts(const PlanExpertsArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
