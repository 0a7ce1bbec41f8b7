// Experts for up to 64 tokens a step on tensor cores, weights read once: decode batches.
//
// Blocks of 16 warps, one per multiprocessor, walk ranges of tiles of 8 neurons. Experts in VRAM
// with a hidden size of at most 2048: each warp owns 128 columns of the hidden size and loads
// weights straight into fragments (bf16_experts.cuh, bf12_experts.cuh); one kernel does it all.
// Beyond, the down product needs more accumulators than a block has registers for, so gate and up
// write activations and a second kernel multiplies down (two_pass_experts.h; on devices of less
// shared memory by kernels that take the columns in slices of 2048); it is also what reads the
// weights of experts of many tokens once, at any hidden size. Experts in mapped host
// memory: the first blocks fetch whole tiles at the link's full rate (link_tiles.cuh) while the
// others work in VRAM; a task's slot is filled on the way.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

// How the tasks in mapped host memory are read: there are none; by bulk copies into shared memory,
// which holds the tokens as well, or nothing else; or, where not even these fit, by plain loads
// after those in VRAM.
enum class LinkAccess { kNone, kBulk, kBulkAlone, kPlain };

constexpr bool IsBulk(LinkAccess access) {
  return access == LinkAccess::kBulk || access == LinkAccess::kBulkAlone;
}

// Of the current device.
LinkAccess LinkAccessFor(ExpertFormatKind format, int hidden);

struct ExpertTilesArguments {
  const ExpertTaskList* tasks = nullptr;  // device memory
  const __nv_bfloat16* x = nullptr;       // [tokens, hidden]
  float* output = nullptr;                // [rows, hidden], added to
  // Scratch: ExpertTilesScratchBytes().
  __nv_bfloat16* activations = nullptr;
  ExpertFormatKind format = ExpertFormatKind::kBF16;
  int hidden = 0;
  int list_bytes = 0;  // bf12: of the list of escapes behind every 32 neurons
  int multiprocessors = 0;
  LinkAccess link = LinkAccess::kNone;
  // Of an expert in VRAM, at most so many are joined (ExpertTask::num_joined), in two passes; 0:
  // not in these (two_pass_experts.h).
  int joined_tasks = 0;
};

// The joined_tasks that suits steps of `rows` tokens. `two_passes`: TwoPassSupports() of the
// device.
int JoinedTasksFor(bool two_passes, ExpertFormatKind format, int hidden, int rows, int top_k,
                   int num_experts);

// Scratch of a tile for a task's tokens: activations and what the pass after them needs beside.
inline constexpr int kTileActivationBytes = kTileNeurons * (2 * kTaskTokens + 2);

// Bytes of activations scratch for at most `max_tiles` tiles of a span, those of joined tasks
// counted for each.
size_t ExpertTilesScratchBytes(int max_tiles);

// Raises the kernels' shared-memory limit; once per device, before the first launch or capture.
cudaError_t PrepareExpertTiles(int hidden);

// output[target] += weight * expert(x[token]) for every token of every task. Can be captured in a
// graph.
cudaError_t LaunchExpertTiles(const ExpertTilesArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
