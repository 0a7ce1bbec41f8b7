// What a block of the single-token kernels knows of its tasks, in shared memory: those in VRAM,
// then those over the link, of which the last may be cut short.
#pragma once

#include "runtime/backend/cuda/expert_neurons.h"
#include "runtime/backend/cuda/expert_tasks.h"

namespace moed::backend {

// Of a token's tasks.
struct NeuronTiles {
  int vram;
  int link;

  __device__ int all() const { return vram + link; }
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
    return {list.vram.num_tiles, list.link.num_tiles};
  }
};

}  // namespace moed::backend
