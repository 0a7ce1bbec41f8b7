// What a block of the single-token kernels knows of its tasks, in shared memory: those in VRAM,
// then those over the link, of which the last may be cut short.
#pragma once

#include "runtime/backend/cuda/experts/expert_neurons.h"
#include "runtime/backend/cuda/plan/expert_tasks.h"

namespace moed::backend {

// Of a token's tasks.
struct NeuronTiles {
  int vram;
  int link;
  int blocks;  // the grid's first so many compute them; one that is left has the CPU's part

  __device__ int all() const { return vram + link; }
  __device__ bool mails() const { return blocks < int(gridDim.x); }
};

// Blocks that take the link while others read VRAM; from eight on the link is full.
inline constexpr int kLinkBlocks = 16;

// A worker's neurons, or groups of them: `first`, `first` + `stride`, ... below `end`, of all
// tasks' in turn. Those over the link are behind VRAM's.
struct NeuronShare {
  int link_blocks;
  bool link;
  int first;
  int end;
  int stride;

  // `per_tile`: groups of a tile. A block has `workers`, of which this is number `worker`.
  __device__ NeuronShare(const NeuronTiles& tiles, int per_tile, int workers, int worker) {
    const int vram = tiles.vram * per_tile;
    const int total = tiles.all() * per_tile;
    const int block = blockIdx.x;
    link_blocks = min(min(kLinkBlocks, tiles.blocks / 2), total - vram);
    link = block < link_blocks;
    first = (link ? block : block - link_blocks) * workers + worker + (link ? vram : 0);
    end = link ? total : vram;
    stride = (link ? link_blocks : tiles.blocks - link_blocks) * workers;
  }
};

struct NeuronTasks {
  const std::byte* blob[kMaxNeuronTasks];
  std::byte* fill[kMaxNeuronTasks];
  float weight[kMaxNeuronTasks];

  // All threads of the block call it; a barrier must follow.
  __device__ NeuronTiles Load(const ExpertTaskList& list) {
    const int i = threadIdx.x;
    if (i < list.vram.num_tasks + list.link.num_tasks) {
      const ExpertTask& task =
          i < list.vram.num_tasks ? list.vram.tasks[i] : list.link.tasks[i - list.vram.num_tasks];
      blob[i] = task.blob;
      fill[i] = task.fill;
      weight[i] = task.weight[0];
    }
    return {list.vram.num_tiles, list.link.num_tiles, int(gridDim.x)};
  }
};

}  // namespace moed::backend
