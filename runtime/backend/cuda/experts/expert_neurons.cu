#include <type_traits>

#include "runtime/backend/cuda/experts/expert_neurons.h"
#include "runtime/backend/cuda/experts/neuron_ring.cuh"
#include "runtime/backend/cuda/experts/neuron_tasks.cuh"
#include "runtime/backend/cuda/experts/token_choice.cuh"
#include "runtime/backend/cuda/experts/token_mail.cuh"
#include "runtime/backend/cuda/primitives/global_add.cuh"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

// Measured best on an H200: more warps, deeper rings or two blocks per multiprocessor were slower.
constexpr int kWarps = 4;
constexpr int kSlots = 2;
constexpr int kThreads = kWarps * 32;
constexpr int kChunkColumns = 256;  // 8 values a lane

template <int kChunks>
constexpr uint32_t kNeuronBytes = 6 * kChunks* kChunkColumns;

template <int kChunks>
constexpr int kSharedBytes = kWarps* kSlots* int(kNeuronBytes<kChunks>);

// sum[8 * chunk + i] += scale * down, over the lane's columns.
template <int kChunks>
__device__ void AddDown(const uint4* down, int lane, float scale, float (&sum)[8 * kChunks]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const uint4 packed = down[c * 32 + lane];
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&packed);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 value = __bfloat1622float2(pairs[i]);
      sum[c * 8 + 2 * i] = fmaf(scale, value.x, sum[c * 8 + 2 * i]);
      sum[c * 8 + 2 * i + 1] = fmaf(scale, value.y, sum[c * 8 + 2 * i + 1]);
    }
  }
}

// Copies a neuron from shared memory into a slot.
template <int kChunks>
__device__ void FillNeuron(const uint4* values, int lane, std::byte* slot) {
#pragma unroll
  for (int c = 0; c < 3 * kChunks; ++c) {
    reinterpret_cast<uint4*>(slot)[c * 32 + lane] = values[c * 32 + lane];
  }
}

// Adds the warps' sums to the output; `scratch` is [kWarps][hidden] floats of shared memory.
template <int kChunks>
__device__ void AddToOutput(const float (&sum)[8 * kChunks], int warp, int lane, float* scratch,
                            float* output) {
  constexpr int kHidden = kChunks * kChunkColumns;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* s = sum + c * 8 + half * 4;
      reinterpret_cast<float4*>(scratch + warp * kHidden)[(c * 32 + lane) * 2 + half] =
          make_float4(s[0], s[1], s[2], s[3]);
    }
  }
  __syncthreads();
  AddWarpSums<kWarps>(scratch, kHidden, output);
}

template <int kChunks>
__global__ void __launch_bounds__(kThreads, 1)
    NeuronExperts(const __grid_constant__ ExpertNeuronsArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[kWarps][kSlots];
  __shared__ NeuronTasks tasks;
  using Chosen = ChosenExperts<kThreads>;
  __shared__ Chosen chosen;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  constexpr uint32_t kBytes = kNeuronBytes<kChunks>;
  NeuronRing<kSlots, kBytes> ring(memory + size_t(warp) * kSlots * kBytes, barriers[warp], lane);
  const bool chooses = a.choice.logits != nullptr;
  typename Chosen::Ahead ahead;
  if (chooses) ahead.Load(a.choice);
  WaitForKernelAhead();
  uint4 x[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) x[c] = reinterpret_cast<const uint4*>(a.x)[c * 32 + lane];
  const NeuronTiles tiles =
      chooses ? chosen.Choose(a.choice, ahead, a.x, &tasks) : tasks.Load(*a.tasks);
  const NeuronShare share(tiles, kTileNeurons, kWarps, warp);
  if (int(blockIdx.x) == tiles.blocks) {
    return RunMail(a.choice, chosen, share.link_blocks, &tasks, a.output);
  }
  if (share.link) LetPostGoFirst(a.choice.mail, tiles);
  __syncthreads();

  auto address = [&](int neuron) -> const std::byte* {
    if (neuron >= share.end) return nullptr;
    return tasks.blob[neuron / a.intermediate] + size_t(neuron % a.intermediate) * kBytes;
  };
  for (int i = 0; i < kSlots; ++i) ring.Fetch(i, address(share.first + i * share.stride));
  LetNextKernelBegin();  // whose weights would keep the choice waiting
  if (chooses) {
    chosen.Weigh(a.choice, &tasks);
    chosen.Record(a.choice);
    __syncthreads();
  }

  float sum[8 * kChunks] = {};
  int sequence = 0;
  for (int neuron = share.first; neuron < share.end; neuron += share.stride, ++sequence) {
    const uint4* values = reinterpret_cast<const uint4*>(ring.Wait(sequence));
    float gate = 0.0f;
    float up = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      gate += Dot8(values[c * 32 + lane], x[c]);
      up += Dot8(values[(kChunks + c) * 32 + lane], x[c]);
    }
    gate = WarpSum(gate);
    up = WarpSum(up);
    // The input of the down product is bf16, as in every other kernel.
    const float activation = __bfloat162float(__float2bfloat16(Silu(gate) * up));
    AddDown<kChunks>(values + 2 * kChunks * 32, lane,
                     activation * tasks.weight[neuron / a.intermediate], sum);
    if (std::byte* slot = tasks.fill[neuron / a.intermediate]; slot != nullptr) {
      FillNeuron<kChunks>(values, lane, slot + size_t(neuron % a.intermediate) * kBytes);
    }
    __syncwarp();
    ring.Fetch(sequence + kSlots, address(neuron + kSlots * share.stride));
  }
  __syncthreads();  // the rings are spent; their memory takes the sums
  if (share.link) EndLink(a.choice.mail, tiles, share.link_blocks);
  AddToOutput<kChunks>(sum, warp, lane, reinterpret_cast<float*>(memory), a.output);
}

// Calls `function` with the number of 256-column chunks as a compile-time constant.
template <typename Function>
cudaError_t ForChunks(int hidden, Function function) {
  switch (hidden / kChunkColumns) {
    case 1:
      return function(std::integral_constant<int, 1>());
    case 2:
      return function(std::integral_constant<int, 2>());
    case 3:
      return function(std::integral_constant<int, 3>());
    case 4:
      return function(std::integral_constant<int, 4>());
    case 5:
      return function(std::integral_constant<int, 5>());
    case 6:
      return function(std::integral_constant<int, 6>());
    case 7:
      return function(std::integral_constant<int, 7>());
    default:
      return function(std::integral_constant<int, 8>());
  }
}

}  // namespace

bool ExpertNeuronsSupports(ExpertFormatKind format, int hidden) {
  if (format == ExpertFormatKind::kBF12) return ExpertNeuronsBf12Supports(hidden);
  return hidden > 0 && hidden % kChunkColumns == 0 && hidden <= 8 * kChunkColumns;
}

cudaError_t PrepareExpertNeurons(ExpertFormatKind format, int hidden) {
  if (format == ExpertFormatKind::kBF12) return PrepareExpertNeuronsBf12(hidden);
  return ForChunks(hidden, [](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    return cudaFuncSetAttribute(NeuronExperts<kChunks>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(SharedBytesOfOneBlock(kSharedBytes<kChunks>)));
  });
}

cudaError_t LaunchExpertNeurons(ExpertFormatKind format, const ExpertNeuronsArguments& arguments,
                                cudaStream_t stream) {
  if (format == ExpertFormatKind::kBF12) return LaunchExpertNeuronsBf12(arguments, stream);
  return ForChunks(arguments.hidden, [&](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    return LaunchAhead(NeuronExperts<kChunks>,
                       {.grid = unsigned(arguments.multiprocessors),
                        .block = kThreads,
                        .shared_bytes = SharedBytesOfOneBlock(kSharedBytes<kChunks>)},
                       stream, arguments);
  });
}

}  // namespace moed::backend
