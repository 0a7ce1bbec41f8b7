// Experts for up to 64 tokens a step on tensor cores, weights read once: decode batches, resident
// or cold experts alike (a task's blob may lie in VRAM or in mapped host memory).
//
// One block of 16 warps per multiprocessor walks a range of tiles of 8 neurons; each warp owns 128
// columns of the hidden size and loads weights straight into fragments (bf16_experts.cuh,
// bf12_experts.cuh); a task's slot is filled from them on the way. With a hidden size of at most
// 2048 one kernel does it all; beyond, the down product needs more accumulators than a block has
// registers for, so gate and up write activations and a second kernel takes the columns in slices
// of 2048.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/expert_tasks.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

struct ExpertTilesArguments {
  const ExpertTaskList* tasks = nullptr;  // device memory
  const __nv_bfloat16* x = nullptr;       // [tokens, hidden]
  float* output = nullptr;                // [rows, hidden], added to
  // Scratch for hidden > 2048: ExpertTilesScratchBytes().
  __nv_bfloat16* activations = nullptr;
  ExpertFormatKind format = ExpertFormatKind::kBF16;
  int hidden = 0;
  int list_bytes = 0;  // bf12: of the list of escapes behind every 32 neurons
  int multiprocessors = 0;
};

// Bytes of activations scratch for at most `max_tiles` tiles over all tasks; 0 if none is needed.
size_t ExpertTilesScratchBytes(int hidden, int max_tiles);

// Raises the kernels' shared-memory limit; once per device, before the first launch or capture.
cudaError_t PrepareExpertTiles(int hidden);

// output[target] += weight * expert(x[token]) for every token of every task. Can be captured in a
// graph.
cudaError_t LaunchExpertTiles(const ExpertTilesArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
