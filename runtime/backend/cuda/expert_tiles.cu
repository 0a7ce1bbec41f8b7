#include <algorithm>

#include "runtime/backend/cuda/bf12_experts.cuh"
#include "runtime/backend/cuda/bf16_experts.cuh"
#include "runtime/backend/cuda/expert_tiles.h"

namespace moed::backend {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpColumns = 128;
constexpr int kSliceColumns = kWarps * kWarpColumns;
// Keeps the rows of different tokens in different banks.
constexpr int kTokenPadding = 8;

constexpr int NumSlices(int hidden) { return (hidden + kSliceColumns - 1) / kSliceColumns; }
constexpr int TokenStride(int hidden) { return NumSlices(hidden) * kSliceColumns + kTokenPadding; }
constexpr int SharedBytes(int hidden) { return kTaskTokens * TokenStride(hidden) * 2; }

// Where a block stands in the list of tasks.
class TaskCursor {
 public:
  // At the task that holds tile `first`.
  __device__ TaskCursor(const ExpertTaskList& list, int first) : tasks_(list.tasks) {
    int low = 0;
    int high = list.num_tasks - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (tasks_[middle].first_tile <= first) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    index_ = low;
  }
  __device__ void MoveTo(int tile) {
    while (tile >= tasks_[index_].first_tile + tasks_[index_].num_tiles) ++index_;
  }
  __device__ const ExpertTask& task() const { return tasks_[index_]; }
  __device__ int index() const { return index_; }
  template <class Format>
  __device__ const std::byte* TileAddress(int tile, const ExpertTilesArguments& a) const {
    return task().blob + Format::TileOffset(tile - task().first_tile, a.hidden, a.list_bytes);
  }

 private:
  const ExpertTask* tasks_;
  int index_ = 0;
};

// Where tile `tile` lies in the slot that its task fills; null if it fills none.
template <class Format>
__device__ std::byte* FillAddress(const ExpertTask& task, int tile, const ExpertTilesArguments& a) {
  if (task.fill == nullptr) return nullptr;
  return task.fill + Format::TileOffset(tile - task.first_tile, a.hidden, a.list_bytes);
}

// The list of escapes that tile `tile` shares with three others, in its blob or in a slot.
__device__ const Bf12TileEscape* EscapeList(const std::byte* blob, const ExpertTask& task, int tile,
                                            const ExpertTilesArguments& a) {
  const int next = (tile - task.first_tile) / Bf12Experts::kListTiles + 1;
  return reinterpret_cast<const Bf12TileEscape*>(
      blob + Bf12Experts::TileOffset(next * Bf12Experts::kListTiles, a.hidden, a.list_bytes) -
      a.list_bytes);
}

// With the last tile before it, a list is written into the slot that the task fills.
template <class Format>
__device__ void FillList(const ExpertTask& task, int tile, const ExpertTilesArguments& a) {
  if constexpr (Format::kHasEscapes) {
    const int index = tile - task.first_tile;
    const bool last = index % Format::kListTiles == Format::kListTiles - 1;
    if (task.fill == nullptr || !(last || index == task.num_tiles - 1)) return;
    const auto* source = reinterpret_cast<const uint4*>(EscapeList(task.blob, task, tile, a));
    auto* target =
        reinterpret_cast<uint4*>(const_cast<Bf12TileEscape*>(EscapeList(task.fill, task, tile, a)));
    for (int i = threadIdx.x; i < a.list_bytes / 16; i += kThreads) target[i] = source[i];
  }
}

struct SharedState {
  float partial[kWarps][4][33];  // gate and up sums of each warp's columns
  __align__(16) __nv_bfloat16 activations[kTaskTokens][kTileNeurons];
  uint32_t headers[kTileNeurons];  // formats with escapes: the first word of each neuron's
  ExpertTask task;
};

__device__ void LoadTask(const ExpertTask& task, SharedState* shared) {
  __syncthreads();
  if (threadIdx.x < sizeof(ExpertTask) / 4) {
    reinterpret_cast<uint32_t*>(&shared->task)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(&task)[threadIdx.x];
  }
  __syncthreads();
}

// The task's tokens into shared memory, absent tokens and columns as zeros.
__device__ void LoadTokens(const SharedState& shared, const __nv_bfloat16* x, int hidden,
                           __nv_bfloat16* tokens) {
  const int stride = TokenStride(hidden);
  const int chunks = (stride - kTokenPadding) / 8;
  for (int i = threadIdx.x; i < kTaskTokens * chunks; i += kThreads) {
    const int token = i / chunks;
    const int column = i % chunks * 8;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < shared.task.num_tokens && column < hidden) {
      value =
          *reinterpret_cast<const uint4*>(x + size_t(shared.task.token[token]) * hidden + column);
    }
    *reinterpret_cast<uint4*>(tokens + token * stride + column) = value;
  }
  __syncthreads();
}

// What the first two warps need to know of a tile whose format has escapes.
template <class Format>
struct TileEscapes {
  typename Format::Header header;
  int tile;
};

// Adds the escapes of gate and up to a (neuron, token)'s sums.
template <class Format>
__device__ void AddGateUpEscapes(const ExpertTilesArguments& a, const TileEscapes<Format>& escapes,
                                 const SharedState& shared, const __nv_bfloat16* token, int lane,
                                 float* gate, float* up) {
  if constexpr (Format::kHasEscapes) {
    const auto* list = EscapeList(shared.task.blob, shared.task, escapes.tile, a);
    const int first = (escapes.tile - shared.task.first_tile) % Format::kListTiles * kTileNeurons;
    Format::ForEachEscape(escapes.header, list, first, a.hidden, lane,
                          [&](int part, int column, float delta) {
                            if (part == 2) return;
                            float* const sum = part == 0 ? gate : up;
                            *sum += delta * __bfloat162float(token[column]);
                          });
  }
}

// Adds the escapes of down straight to the output.
template <class Format>
__device__ void AddDownEscapes(const ExpertTilesArguments& a, const TileEscapes<Format>& escapes,
                               const SharedState& shared, int token, float activation, int lane) {
  if constexpr (Format::kHasEscapes) {
    const auto* list = EscapeList(shared.task.blob, shared.task, escapes.tile, a);
    const int first = (escapes.tile - shared.task.first_tile) % Format::kListTiles * kTileNeurons;
    Format::ForEachEscape(
        escapes.header, list, first, a.hidden, lane, [&](int part, int column, float delta) {
          if (part != 2 || token >= shared.task.num_tokens) return;
          atomicAdd(a.output + size_t(shared.task.target[token]) * a.hidden + column,
                    shared.task.weight[token] * activation * delta);
        });
  }
}

// Adds the warps' partial gate and up sums and leaves silu(gate) * up in shared memory. `tokens`:
// the task's, in shared memory.
template <class Format>
__device__ void Activate(const ExpertTilesArguments& a, const float (&sums)[4],
                         const TileEscapes<Format>& escapes, const __nv_bfloat16* tokens, int warp,
                         int lane, SharedState* shared) {
#pragma unroll
  for (int r = 0; r < 4; ++r) shared->partial[warp][r][lane] = sums[r];
  __syncthreads();
  if (threadIdx.x < 64) {
    const int r = threadIdx.x / 32;
    const int source = threadIdx.x % 32;
    float gate = 0.0f;
    float up = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      gate += shared->partial[w][r][source];
      up += shared->partial[w][2 + r][source];
    }
    const int neuron = source / 4;
    const int token = 2 * (source % 4) + r;
    AddGateUpEscapes<Format>(a, escapes, *shared, tokens + token * TokenStride(a.hidden), lane,
                             &gate, &up);
    const bool present = token < shared->task.num_tokens;
    const __nv_bfloat16 activation = __float2bfloat16(present ? Silu(gate) * up : 0.0f);
    shared->activations[token][neuron] = activation;
    AddDownEscapes<Format>(a, escapes, *shared, token, __bfloat162float(activation), lane);
    if constexpr (Format::kHasEscapes) {
      if (threadIdx.x < 32 && lane % 4 == 0) {
        shared->headers[neuron] = Format::FirstWord(escapes.header);
      }
    }
  }
  __syncthreads();
}

// Adds a warp's accumulators, times the router's weight, to its columns of the output; clears
// them.
template <class Format>
__device__ void Flush(const ExpertTask& task, int hidden, int column, int lane, float* output,
                      float (&out)[8][4]) {
#pragma unroll
  for (int m = 0; m < 8; ++m) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int token = 2 * (lane % 4) + r % 2;
      const int target = column + Format::OutputColumn(lane, m, r);
      if (token < task.num_tokens && target < hidden) {
        atomicAdd(output + size_t(task.target[token]) * hidden + target,
                  task.weight[token] * out[m][r]);
      }
      out[m][r] = 0.0f;
    }
  }
}

__device__ uint32_t ActivationPair(const __nv_bfloat16 (*activations)[kTileNeurons], int lane) {
  return *reinterpret_cast<const uint32_t*>(&activations[lane / 4][2 * (lane % 4)]);
}

// hidden <= 2048: gate, up and down of a tile in one go.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    FusedTiles(const __grid_constant__ ExpertTilesArguments a) {
  extern __shared__ __align__(128) __nv_bfloat16 tokens[];
  __shared__ SharedState shared;
  const ExpertTaskList list = *a.tasks;
  const int begin = int(int64_t{list.num_tiles} * blockIdx.x / gridDim.x);
  const int end = int(int64_t{list.num_tiles} * (blockIdx.x + 1) / gridDim.x);
  if (begin == end) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int column = warp * kWarpColumns;

  TaskCursor next(list, begin);
  int current = -1;
  typename Format::GateUp gate_up;
  Format::Load(next.TileAddress<Format>(begin, a), a.hidden, column, lane, &gate_up);
  float out[8][4] = {};
  for (int tile = begin; tile < end; ++tile) {
    if (next.index() != current) {
      if (current >= 0) Flush<Format>(shared.task, a.hidden, column, lane, a.output, out);
      current = next.index();
      LoadTask(next.task(), &shared);
      LoadTokens(shared, a.x, a.hidden, tokens);
    }
    // This tile's down rows and the next tile's gate and up are on their way while it multiplies.
    typename Format::Down down;
    Format::Load(next.TileAddress<Format>(tile, a), a.hidden, column, lane, &down);
    std::byte* const fill = FillAddress<Format>(shared.task, tile, a);
    float sums[4] = {};
    Format::MultiplyGateUp(gate_up, tokens + lane / 4 * TokenStride(a.hidden) + column, lane, sums);
    if (fill != nullptr) Format::Store(gate_up, a.hidden, column, lane, fill);
    const TileEscapes<Format> escapes = {Format::HeaderOf(gate_up), tile};
    if (tile + 1 < end) {
      next.MoveTo(tile + 1);
      Format::Load(next.TileAddress<Format>(tile + 1, a), a.hidden, column, lane, &gate_up);
    }
    Activate<Format>(a, sums, escapes, tokens, warp, lane, &shared);
    Format::TakeBases(shared.headers, lane, &down);
    Format::MultiplyDown(down, ActivationPair(shared.activations, lane), lane, out);
    if (fill != nullptr) Format::Store(down, a.hidden, column, lane, fill);
    FillList<Format>(shared.task, tile, a);
  }
  Flush<Format>(shared.task, a.hidden, column, lane, a.output, out);
}

// hidden > 2048, first half: activations [tiles, 8 tokens, 8 neurons].
template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    GateUpTiles(const __grid_constant__ ExpertTilesArguments a) {
  extern __shared__ __align__(128) __nv_bfloat16 tokens[];
  __shared__ SharedState shared;
  const ExpertTaskList list = *a.tasks;
  const int begin = int(int64_t{list.num_tiles} * blockIdx.x / gridDim.x);
  const int end = int(int64_t{list.num_tiles} * (blockIdx.x + 1) / gridDim.x);
  if (begin == end) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slices = NumSlices(a.hidden);

  TaskCursor next(list, begin);
  int current = -1;
  typename Format::GateUp gate_up;
  Format::Load(next.TileAddress<Format>(begin, a), a.hidden, warp * kWarpColumns, lane, &gate_up);
  for (int tile = begin; tile < end; ++tile) {
    if (next.index() != current) {
      current = next.index();
      LoadTask(next.task(), &shared);
      LoadTokens(shared, a.x, a.hidden, tokens);
    }
    std::byte* const fill = FillAddress<Format>(shared.task, tile, a);
    const TileEscapes<Format> escapes = {Format::HeaderOf(gate_up), tile};
    float sums[4] = {};
    for (int slice = 0; slice < slices; ++slice) {
      const int column = slice * kSliceColumns + warp * kWarpColumns;
      const typename Format::GateUp now = gate_up;
      if (slice + 1 < slices) {
        Format::Load(next.TileAddress<Format>(tile, a), a.hidden, column + kSliceColumns, lane,
                     &gate_up);
      } else if (tile + 1 < end) {
        next.MoveTo(tile + 1);
        Format::Load(next.TileAddress<Format>(tile + 1, a), a.hidden, warp * kWarpColumns, lane,
                     &gate_up);
      }
      Format::MultiplyGateUp(now, tokens + lane / 4 * TokenStride(a.hidden) + column, lane, sums);
      if (fill != nullptr) Format::Store(now, a.hidden, column, lane, fill);
    }
    Activate<Format>(a, sums, escapes, tokens, warp, lane, &shared);
    FillList<Format>(shared.task, tile, a);
    if (threadIdx.x < kTaskTokens) {
      reinterpret_cast<uint4*>(a.activations)[size_t(tile) * kTaskTokens + threadIdx.x] =
          *reinterpret_cast<const uint4*>(shared.activations[threadIdx.x]);
    }
    __syncthreads();
  }
}

// hidden > 2048, second half: blocks share out (slice, tile), slice by slice.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    DownTiles(const __grid_constant__ ExpertTilesArguments a) {
  const ExpertTaskList list = *a.tasks;
  const int slices = NumSlices(a.hidden);
  const int64_t units = int64_t{list.num_tiles} * slices;
  const int64_t begin = units * blockIdx.x / gridDim.x;
  const int64_t end = units * (blockIdx.x + 1) / gridDim.x;
  if (begin == end) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  auto tile_of = [&](int64_t unit) { return int(unit % list.num_tiles); };
  auto column_of = [&](int64_t unit) {
    return int(unit / list.num_tiles) * kSliceColumns + warp * kWarpColumns;
  };
  auto load = [&](const TaskCursor& cursor, int64_t unit, typename Format::Down* down) {
    const std::byte* tile = cursor.TileAddress<Format>(tile_of(unit), a);
    Format::Load(tile, a.hidden, column_of(unit), lane, down);
    Format::LoadBases(tile, a.hidden, lane, down);
    return reinterpret_cast<const uint32_t*>(a.activations)[size_t(tile_of(unit)) * 32 + lane];
  };

  constexpr int kAhead = 3;  // tiles in flight
  TaskCursor front(list, tile_of(begin));
  TaskCursor back = front;
  typename Format::Down down[kAhead];
  uint32_t activations[kAhead];
  auto advance = [&](TaskCursor* cursor, int64_t unit) {
    if (tile_of(unit) == 0) *cursor = TaskCursor(list, 0);
    cursor->MoveTo(tile_of(unit));
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i < end) {
      advance(&front, begin + i);
      activations[i] = load(front, begin + i, &down[i]);
    }
  }
  float out[8][4] = {};
  int task = back.index();
  int column = column_of(begin);
  for (int64_t base = begin; base < end; base += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t unit = base + i;
      if (unit < end) {
        advance(&back, unit);
        if (back.index() != task || column_of(unit) != column) {
          Flush<Format>(list.tasks[task], a.hidden, column, lane, a.output, out);
          task = back.index();
          column = column_of(unit);
        }
        Format::MultiplyDown(down[i], activations[i], lane, out);
        std::byte* const fill = FillAddress<Format>(back.task(), tile_of(unit), a);
        if (fill != nullptr) Format::Store(down[i], a.hidden, column, lane, fill);
        if (unit + kAhead < end) {
          advance(&front, unit + kAhead);
          activations[i] = load(front, unit + kAhead, &down[i]);
        }
      }
    }
  }
  Flush<Format>(list.tasks[task], a.hidden, column, lane, a.output, out);
}

template <class Format>
cudaError_t Prepare(int hidden) {
  const int bytes = SharedBytes(hidden);
  const cudaError_t error =
      cudaFuncSetAttribute(FusedTiles<Format>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(GateUpTiles<Format>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              bytes);
}

template <class Format>
void Launch(const ExpertTilesArguments& arguments, cudaStream_t stream) {
  const int bytes = SharedBytes(arguments.hidden);
  const int blocks = arguments.multiprocessors;
  if (arguments.hidden <= kSliceColumns) {
    FusedTiles<Format><<<blocks, kThreads, bytes, stream>>>(arguments);
  } else {
    GateUpTiles<Format><<<blocks, kThreads, bytes, stream>>>(arguments);
    DownTiles<Format><<<blocks, kThreads, 0, stream>>>(arguments);
  }
}

}  // namespace

size_t ExpertTilesScratchBytes(int hidden, int max_tiles) {
  if (hidden <= kSliceColumns) return 0;
  return size_t(max_tiles) * kTileNeurons * kTaskTokens * sizeof(__nv_bfloat16);
}

cudaError_t PrepareExpertTiles(int hidden) {
  const cudaError_t error = Prepare<Bf16Experts>(hidden);
  return error != cudaSuccess ? error : Prepare<Bf12Experts>(hidden);
}

cudaError_t LaunchExpertTiles(const ExpertTilesArguments& arguments, cudaStream_t stream) {
  if (arguments.format == ExpertFormatKind::kBF12) {
    Launch<Bf12Experts>(arguments, stream);
  } else {
    Launch<Bf16Experts>(arguments, stream);
  }
  return cudaGetLastError();
}

}  // namespace moed::backend
