#include <algorithm>

#include "runtime/backend/cuda/experts/bf12_decode.cuh"
#include "runtime/backend/cuda/experts/bf12_experts.cuh"
#include "runtime/backend/cuda/experts/expert_neurons.h"
#include "runtime/backend/cuda/experts/neuron_tasks.cuh"
#include "runtime/backend/cuda/experts/token_choice.cuh"
#include "runtime/backend/cuda/experts/token_mail.cuh"
#include "runtime/backend/cuda/primitives/block_ring.cuh"
#include "runtime/backend/cuda/primitives/global_add.cuh"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

// A warp to a neuron, as for bf16. Eight neurons come in one copy, because only every fourth begins
// at a multiple of 128 bytes, without which the link is a quarter slower, and because decoding
// keeps two warps a scheduler busy.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kGroupNeurons = kWarps;
constexpr int kGroupsPerList = kBf12TileNeurons / kGroupNeurons;
constexpr int kSlots = 2;
// Blocks of 128 columns that a warp takes at once, four lanes each.
constexpr int kBlocksAtOnce = 8;

__host__ __device__ int GroupBytes(int hidden) {
  return kGroupNeurons * static_cast<int>(Bf12Experts::NeuronBytes(hidden));
}

int SharedBytes(int hidden) {
  const int sums = kWarps * hidden * static_cast<int>(sizeof(float));
  return std::max(kSlots * GroupBytes(hidden), sums);
}

// A lane's 32 columns of a block: 8 from each of `column + 32 * group`.
__device__ int LaneColumn(int iteration, int lane) {
  return (iteration * kBlocksAtOnce + lane / 4) * kBf12PairBlockValues + lane % 4 * 8;
}

__device__ float Dot2(uint32_t a, uint32_t b, float sum) {
  const float2 u = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&a));
  const float2 v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&b));
  return fmaf(u.y, v.y, fmaf(u.x, v.x, sum));
}

// Calls function(pair index, two values) for the lane's columns of a row, 16 pairs an iteration.
template <int kIterations, class Function>
__device__ void ForEachPair(const std::byte* row, uint32_t base, int hidden, int lane,
                            const Function& function) {
#pragma unroll
  for (int it = 0; it < kIterations; ++it) {
    const int block = it * kBlocksAtOnce + lane / 4;
    if (block * kBf12PairBlockValues >= hidden) continue;
    const std::byte* at = row + block * kBf12PairBlockBytes + lane % 4 * 16;
    const uint4 low = *reinterpret_cast<const uint4*>(at);
    const uint4 high = *reinterpret_cast<const uint4*>(at + kBf12PlaneBytes);
    const uint4 nibbles = *reinterpret_cast<const uint4*>(at + 2 * kBf12PlaneBytes);
    const auto* l = reinterpret_cast<const uint32_t*>(&low);
    const auto* h = reinterpret_cast<const uint32_t*>(&high);
    const auto* n = reinterpret_cast<const uint32_t*>(&nibbles);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      function(it * 16 + i, PermuteBf12Pair<0>(l[i], n[i], base));
      function(it * 16 + 4 + i, PermuteBf12Pair<1>(l[i], n[i], base));
      function(it * 16 + 8 + i, PermuteBf12Pair<2>(h[i], n[i], base));
      function(it * 16 + 12 + i, PermuteBf12Pair<3>(h[i], n[i], base));
    }
  }
}

// function(part, column, delta) for this lane's share of a neuron's escapes. `neuron`: of the 32
// that share `list`.
template <class Function>
__device__ void ForEachEscape(const Bf12Header& header, const Bf12TileEscape* list, int neuron,
                              int hidden, int lane, const Function& function) {
  const auto report = [&](const Bf12Escape& escape) {
    const int row = Bf12Experts::RowValues(hidden);
    const int part = escape.position / row;
    function(part, escape.position - part * row, Bf12Delta(escape.bits, header.bases[part]));
  };
  const int count = header.num_escapes;
  if (lane < min(count, kBf12HeaderEscapes)) report(header.escapes[lane]);
  if (count <= kBf12HeaderEscapes) return;
  for (int i = 1 + lane; i <= list[0].neuron; i += 32) {
    const Bf12TileEscape entry = list[i];
    if (entry.neuron == neuron) report(entry.escape);
  }
}

// A group of neurons of a task.
struct Group {
  int task;
  int index;  // in its expert

  __device__ size_t Offset(const ExpertNeuronsArguments& a) const {
    return size_t(index) * GroupBytes(a.hidden) + size_t(index / kGroupsPerList) * a.list_bytes;
  }
  // Of the list of escapes behind its 32 neurons.
  __device__ size_t ListOffset(const ExpertNeuronsArguments& a) const {
    const size_t next = index / kGroupsPerList + 1;
    return next * (size_t{kGroupsPerList} * GroupBytes(a.hidden) + a.list_bytes) - a.list_bytes;
  }
};

__device__ void CopyBytes(const std::byte* source, int bytes, std::byte* target) {
  for (int i = threadIdx.x; i < bytes / 16; i += kThreads) {
    reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(source)[i];
  }
}

// Writes a group into its task's slot, with the last before it also the list of escapes.
__device__ void Fill(const ExpertNeuronsArguments& a, const NeuronTasks& tasks, const Group& group,
                     const std::byte* values) {
  std::byte* const slot = tasks.fill[group.task];
  if (slot == nullptr) return;
  CopyBytes(values, GroupBytes(a.hidden), slot + group.Offset(a));
  const bool last = group.index % kGroupsPerList == kGroupsPerList - 1;
  if (!last && group.index != a.intermediate / kGroupNeurons - 1) return;
  const size_t offset = group.ListOffset(a);
  CopyBytes(tasks.blob[group.task] + offset, a.list_bytes, slot + offset);
}

// sum += weight * the neuron's part of the expert's output, over the lane's columns.
template <int kIterations>
__device__ void AddNeuron(const ExpertNeuronsArguments& a, const std::byte* neuron,
                          const Bf12TileEscape* list, int in_list, float weight,
                          const uint32_t (&x)[16 * kIterations], int lane,
                          float (&sum)[32 * kIterations]) {
  const Bf12Header& header = *reinterpret_cast<const Bf12Header*>(neuron);
  const std::byte* rows = neuron + sizeof(Bf12Header);
  const size_t row_bytes = Bf12Experts::RowBytes(a.hidden);
  float gate = 0.0f;
  float up = 0.0f;
  ForEachPair<kIterations>(rows, Bf12BasePair(header.bases[0]), a.hidden, lane,
                           [&](int i, uint32_t pair) { gate = Dot2(pair, x[i], gate); });
  ForEachPair<kIterations>(rows + row_bytes, Bf12BasePair(header.bases[1]), a.hidden, lane,
                           [&](int i, uint32_t pair) { up = Dot2(pair, x[i], up); });
  ForEachEscape(header, list, in_list, a.hidden, lane, [&](int part, int column, float delta) {
    if (part == 2) return;
    const float product = delta * __bfloat162float(a.x[column]);
    if (part == 0) gate += product;
    if (part == 1) up += product;
  });
  gate = WarpSum(gate);
  up = WarpSum(up);
  // The input of the down product is bf16, as in every other kernel.
  const float scale = weight * __bfloat162float(__float2bfloat16(Silu(gate) * up));
  ForEachPair<kIterations>(
      rows + 2 * row_bytes, Bf12BasePair(header.bases[2]), a.hidden, lane,
      [&](int i, uint32_t pair) {
        const float2 value = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
        sum[2 * i] = fmaf(scale, value.x, sum[2 * i]);
        sum[2 * i + 1] = fmaf(scale, value.y, sum[2 * i + 1]);
      });
  ForEachEscape(header, list, in_list, a.hidden, lane, [&](int part, int column, float delta) {
    if (part == 2) atomicAdd(a.output + column, scale * delta);
  });
}

// Adds the warps' sums to the output; `scratch` is [kWarps][hidden] floats of shared memory.
template <int kIterations>
__device__ void AddToOutput(const float (&sum)[32 * kIterations], int hidden, int warp, int lane,
                            float* scratch, float* output) {
#pragma unroll
  for (int it = 0; it < kIterations; ++it) {
    const int column = LaneColumn(it, lane);
    if (column >= hidden) continue;
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      float* const target = scratch + warp * hidden + column + 32 * group;
      const float* s = sum + it * 32 + group * 8;
      reinterpret_cast<float4*>(target)[0] = make_float4(s[0], s[1], s[2], s[3]);
      reinterpret_cast<float4*>(target)[1] = make_float4(s[4], s[5], s[6], s[7]);
    }
  }
  __syncthreads();
  AddWarpSums<kWarps>(scratch, hidden, output);
}

template <int kIterations>
__global__ void __launch_bounds__(kThreads, 1)
    Bf12NeuronExperts(const __grid_constant__ ExpertNeuronsArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[kSlots];
  __shared__ NeuronTasks tasks;
  using Chosen = ChosenExperts<kThreads>;
  __shared__ Chosen chosen;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  BlockRing<kSlots> ring(memory, GroupBytes(a.hidden), barriers);
  const bool chooses = a.choice.logits != nullptr;
  Chosen::Ahead ahead;
  if (chooses) ahead.Load(a.choice);
  WaitForKernelAhead();
  const NeuronTiles tiles =
      chooses ? chosen.Choose(a.choice, ahead, a.x, &tasks) : tasks.Load(*a.tasks);
  const NeuronShare share(tiles, kTileNeurons / kGroupNeurons, /*workers=*/1, /*worker=*/0);
  if (int(blockIdx.x) == tiles.blocks) {
    return RunMail(a.choice, chosen, share.link_blocks, &tasks, a.output);
  }
  if (share.link) LetPostGoFirst(a.choice.mail, tiles);
  __syncthreads();

  const int per_expert = a.intermediate / kGroupNeurons;
  const auto group_at = [&](int i) { return Group{i / per_expert, i % per_expert}; };
  const auto address = [&](int i) -> const std::byte* {
    if (i >= share.end) return nullptr;
    const Group group = group_at(i);
    return tasks.blob[group.task] + group.Offset(a);
  };
  for (int i = 0; i < kSlots; ++i) ring.Fetch(i, address(share.first + i * share.stride));
  LetNextKernelBegin();  // whose weights would keep the choice waiting
  if (chooses) {
    chosen.Weigh(a.choice, &tasks);
    chosen.Record(a.choice);
    __syncthreads();
  }
  uint32_t x[16 * kIterations];
#pragma unroll
  for (int it = 0; it < kIterations; ++it) {
    const int column = LaneColumn(it, lane);
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const uint4 values = column < a.hidden
                               ? *reinterpret_cast<const uint4*>(a.x + column + 32 * group)
                               : make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(x + it * 16 + group * 4) = values;
    }
  }

  float sum[32 * kIterations] = {};
  int sequence = 0;
  for (int i = share.first; i < share.end; i += share.stride, ++sequence) {
    const Group group = group_at(i);
    const std::byte* values = ring.Wait(sequence);
    const auto* list =
        reinterpret_cast<const Bf12TileEscape*>(tasks.blob[group.task] + group.ListOffset(a));
    AddNeuron<kIterations>(a, values + warp * Bf12Experts::NeuronBytes(a.hidden), list,
                           group.index % kGroupsPerList * kGroupNeurons + warp,
                           tasks.weight[group.task], x, lane, sum);
    Fill(a, tasks, group, values);
    __syncthreads();
    ring.Fetch(sequence + kSlots, address(i + kSlots * share.stride));
  }
  __syncthreads();  // the ring is spent; its memory takes the sums
  if (share.link) EndLink(a.choice.mail, tiles, share.link_blocks);
  AddToOutput<kIterations>(sum, a.hidden, warp, lane, reinterpret_cast<float*>(memory), a.output);
}

constexpr int kIterationColumns = kBlocksAtOnce * kBf12PairBlockValues;

using Kernel = void (*)(ExpertNeuronsArguments);

Kernel KernelFor(int hidden) {
  return hidden <= kIterationColumns ? Bf12NeuronExperts<1> : Bf12NeuronExperts<2>;
}

}  // namespace

bool ExpertNeuronsBf12Supports(int hidden) {
  return hidden > 0 && hidden % kBf12PairBlockValues == 0 && hidden <= 2 * kIterationColumns;
}

cudaError_t PrepareExpertNeuronsBf12(int hidden) {
  return cudaFuncSetAttribute(KernelFor(hidden), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(SharedBytesOfOneBlock(SharedBytes(hidden))));
}

cudaError_t LaunchExpertNeuronsBf12(const ExpertNeuronsArguments& arguments, cudaStream_t stream) {
  return LaunchAhead(KernelFor(arguments.hidden),
                     {.grid = unsigned(arguments.multiprocessors),
                      .block = kThreads,
                      .shared_bytes = SharedBytesOfOneBlock(SharedBytes(arguments.hidden))},
                     stream, arguments);
}

}  // namespace moed::backend
