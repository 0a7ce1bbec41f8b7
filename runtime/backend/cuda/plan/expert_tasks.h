// The work of one layer's experts as the device sees it: lists of tasks, each an expert and up to
// eight of the tokens that chose it. Built on the device from the router's choice, read by every
// expert kernel; its memory belongs to the CUDA backend's workspace.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moed::backend {

// Tokens of one tensor-core tile; an expert with more gets several tasks.
inline constexpr int kTaskTokens = 8;
// Tasks of an expert that can be joined, so that its weights are read once for all of them.
inline constexpr int kMostJoinedTasks = 4;
// Neurons of one tile, the unit in which blocks share out experts.
inline constexpr int kTileNeurons = 8;

struct ExpertTask {
  const std::byte* blob = nullptr;  // VRAM slot or mapped host memory
  std::byte* fill = nullptr;        // the slot to write the expert into on the way, or null
  int32_t expert = 0;
  int32_t num_tokens = 0;
  int32_t first_tile = 0;  // tiles of all tasks before this one in its span
  int32_t num_tiles = 0;
  // This one and those behind it of the same expert that are read with it (two_pass_experts.h,
  // link_tiles.cuh); 0 for the latter, which have no tiles of their own.
  int32_t num_joined = 1;
  int32_t token[kTaskTokens] = {};   // row of x
  int32_t target[kTaskTokens] = {};  // row of the output, added to
  float weight[kTaskTokens] = {};    // factor of the sum: the router's, or 1
};

// Tasks whose experts lie in one kind of memory.
struct ExpertTaskSpan {
  int32_t num_tasks = 0;
  int32_t num_tiles = 0;  // over all tasks
  ExpertTask* tasks = nullptr;
};

// Apart, because different blocks read the two kinds of memory at the same time.
struct ExpertTaskList {
  ExpertTaskSpan vram;
  ExpertTaskSpan link;  // in mapped host memory
};

}  // namespace moed::backend
