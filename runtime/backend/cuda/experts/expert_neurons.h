// Experts for a single token: a warp to a neuron, one pass over the weights, the lowest latency at
// batch 1. Every task of the list has one token, the same for all; the link's last one may cover
// only an expert's first tiles. A task's slot is filled on the way.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/backend/cuda/plan/expert_table.h"
#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "runtime/backend/cuda/plan/token_mail.h"
#include "runtime/backend/cuda/routing/routing.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

inline constexpr int kMaxNeuronTasks = 32;
inline constexpr int kMostChoiceExperts = 256;
inline constexpr int kMostNeuronColumns = 2048;
inline constexpr int kLeastNeuronBlocks = 3;  // one each for VRAM, the link and the CPU's part

// A token's routing that is left to the kernel: from the router's logits to tasks, trace and table.
struct TokenChoice {
  RouterSpec spec;                // at most kMostChoiceExperts; top_k: at most kMaxNeuronTasks
  const float* logits = nullptr;  // [experts]
  int32_t* ids = nullptr;         // [k]
  float* weights = nullptr;       // [k]
  int* arrived = nullptr;         // zero, zero again afterwards
  PlanExpertsArguments plan;      // its ids, weights and lists are not used
  TokenMail mail;
};

struct ExpertNeuronsArguments {
  const ExpertTaskList* tasks = nullptr;  // device memory, at most kMaxNeuronTasks tasks
  const __nv_bfloat16* x = nullptr;       // [1, hidden]
  float* output = nullptr;                // [1, hidden], added to
  int hidden = 0;
  int intermediate = 0;
  int list_bytes = 0;       // bf12: of the list of escapes behind every 32 neurons
  int multiprocessors = 0;  // at least kLeastNeuronBlocks
  TokenChoice choice;       // with logits: in place of `tasks`
};

// True for a hidden size these kernels are built for: a multiple of 256 (bf12: 128) up to 2048.
// Others, and several tokens, go to expert_tiles.h.
bool ExpertNeuronsSupports(ExpertFormatKind format, int hidden);

// Raises the kernels' shared-memory limit; once per device, before the first launch or capture.
cudaError_t PrepareExpertNeurons(ExpertFormatKind format, int hidden);

// output += sum over tasks of weight * expert(x). Can be captured in a graph.
cudaError_t LaunchExpertNeurons(ExpertFormatKind format, const ExpertNeuronsArguments& arguments,
                                cudaStream_t stream);

// The same of bf12 alone (expert_neurons_bf12.cu).
bool ExpertNeuronsBf12Supports(int hidden);
cudaError_t PrepareExpertNeuronsBf12(int hidden);
cudaError_t LaunchExpertNeuronsBf12(const ExpertNeuronsArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
