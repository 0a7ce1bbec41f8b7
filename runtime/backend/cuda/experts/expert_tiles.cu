#include <algorithm>

#include "runtime/backend/cuda/experts/bf12_experts.cuh"
#include "runtime/backend/cuda/experts/bf16_experts.cuh"
#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"
#include "runtime/backend/cuda/experts/expert_tiles.h"
#include "runtime/backend/cuda/experts/fused_walk.cuh"
#include "runtime/backend/cuda/experts/link_tiles.cuh"
#include "runtime/backend/cuda/experts/tile_sources.cuh"
#include "runtime/backend/cuda/experts/two_pass_experts.h"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = kTileThreads;
// Shared memory for a task's tokens, up to where a ring may begin.
__host__ __device__ constexpr int TokenRegion(int hidden) {
  return (TokenBytes(hidden) + 127) / 128 * 128;
}

// Which span of the list a launch works on; both: the link's by the first blocks.
enum class TilesOf { kVram, kLink, kBoth };

// hidden <= 2048: gate, up and down of a tile in one go; the first blocks take what the link
// brings.
template <class Format, class Sources>
__global__ void __launch_bounds__(kThreads, 1)
    FusedTiles(const __grid_constant__ ExpertTilesArguments a, TilesOf of) {
  using GateUp = typename Sources::GateUp;
  using Down = typename Sources::Down;
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ TileState state;
  __shared__ uint64_t barriers[std::max(1, GateUp::kBarriers + Down::kBarriers)];
  LetNextKernelBegin();
  WaitForKernelAhead();
  const ExpertTaskList list = *a.tasks;
  const int link_blocks = of == TilesOf::kBoth ? NumLinkBlocks(list) : 0;
  if (int(blockIdx.x) < link_blocks) {
    LinkTiles<Format, LinkAccess::kBulk>(a, list.link, blockIdx.x, link_blocks, memory, &state);
    return;
  }
  const TileRange range(list.vram, blockIdx.x - link_blocks, gridDim.x - link_blocks);
  if (range.begin == range.end) return;
  const int column = threadIdx.x / 32 * kWarpColumns;
  auto* tokens = reinterpret_cast<__nv_bfloat16*>(memory);
  std::byte* const rings = memory + TokenRegion(a.hidden);
  GateUp gate_up(a, list.vram, range, column, rings, barriers);
  Down down(a, list.vram, range, column, rings + GateUp::SharedBytes(a.hidden),
            barriers + GateUp::kBarriers);
  FusedWalk<Format, GateUp, Down> walk(a, gate_up, down, tokens, column, &state);
  TaskCursor cursor(list.vram, range.begin);
  int tile = range.begin;
  while (tile < range.end) {
    cursor.MoveTo(tile);
    LoadTask(cursor.task(), &state);
    LoadTokens(state.task, a.x, a.hidden, tokens);
    const int end = min(range.end, state.task.first_tile + state.task.num_tiles);
    for (bool first = true; tile < end; ++tile, first = false) walk.Step(tile, first);
    walk.Finish(tile - 1);
  }
}

// hidden > 2048, first half: activations [tiles, 8 tokens, 8 neurons] of a span.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    GateUpTiles(const __grid_constant__ ExpertTilesArguments a, TilesOf of) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ TileState state;
  const ExpertTaskList list = *a.tasks;
  const int link_blocks = of == TilesOf::kBoth ? NumLinkBlocks(list) : 0;
  if (int(blockIdx.x) < link_blocks) {
    LinkTiles<Format>(a, list.link, blockIdx.x, link_blocks, memory, &state);
    return;
  }
  const ExpertTaskSpan span = of == TilesOf::kLink ? list.link : list.vram;
  const TileRange range(span, blockIdx.x - link_blocks, gridDim.x - link_blocks);
  if (range.begin == range.end) return;
  auto* tokens = reinterpret_cast<__nv_bfloat16*>(memory);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slices = NumSlices(a.hidden);

  TaskCursor next(span, range.begin);
  int current = -1;
  typename Format::GateUp gate_up;
  Format::template Load<ReadStreaming>(next.TileAddress<Format>(range.begin, a), a.hidden,
                                       warp * kWarpColumns, lane, &gate_up);
  for (int tile = range.begin; tile < range.end; ++tile) {
    if (next.index() != current) {
      current = next.index();
      LoadTask(next.task(), &state);
      LoadTokens(state.task, a.x, a.hidden, tokens);
    }
    std::byte* const fill = FillAddress<Format>(state.task, tile, a);
    const typename Format::Header header = Format::HeaderOf(gate_up);
    const NeuronGroup<kTileNeurons> group = {(tile - state.task.first_tile) * kTileNeurons,
                                             tile & 1};
    float sums[4] = {};
    for (int slice = 0; slice < slices; ++slice) {
      const int column = slice * kSliceColumns + warp * kWarpColumns;
      const typename Format::GateUp now = gate_up;
      if (slice + 1 < slices) {
        Format::template Load<ReadStreaming>(next.TileAddress<Format>(tile, a), a.hidden,
                                             column + kSliceColumns, lane, &gate_up);
      } else if (tile + 1 < range.end) {
        next.MoveTo(tile + 1);
        Format::template Load<ReadStreaming>(next.TileAddress<Format>(tile + 1, a), a.hidden,
                                             warp * kWarpColumns, lane, &gate_up);
      }
      Format::MultiplyGateUp(now, tokens + lane / 4 * TokenStride(a.hidden) + column, lane, sums,
                             NothingToLoad());
      AddGateUpEscapes<Format>(a, header, state, group, SharedTokens{tokens, a.hidden}, column,
                               lane, sums);
      if (fill != nullptr) Format::Store(now, a.hidden, column, lane, fill);
    }
    StorePartial(sums, group.buffer, warp, lane, &state);
    __syncthreads();
    Activate(group.buffer, kTileNeurons, &state);
    FillList<Format>(state.task, tile, a);
    __syncthreads();
    for (int column = warp * kWarpColumns; column < a.hidden; column += kSliceColumns) {
      AddDownEscapes<Format>(a, header, state, group, column, lane);
    }
    if (threadIdx.x < kTaskTokens) {
      reinterpret_cast<uint4*>(a.activations)[size_t(tile) * kTaskTokens + threadIdx.x] =
          *reinterpret_cast<const uint4*>(state.activations[group.buffer][threadIdx.x]);
    }
  }
}

// hidden > 2048, second half: blocks share out (slice, tile), slice by slice.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    DownTiles(const __grid_constant__ ExpertTilesArguments a, TilesOf of) {
  // What the first blocks took is wholly done.
  const ExpertTaskSpan span = of == TilesOf::kLink ? a.tasks->link : a.tasks->vram;
  const int slices = NumSlices(a.hidden);
  const int64_t units = int64_t{span.num_tiles} * slices;
  const int64_t begin = units * blockIdx.x / gridDim.x;
  const int64_t end = units * (blockIdx.x + 1) / gridDim.x;
  if (begin == end) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  auto tile_of = [&](int64_t unit) { return int(unit % span.num_tiles); };
  auto column_of = [&](int64_t unit) {
    return int(unit / span.num_tiles) * kSliceColumns + warp * kWarpColumns;
  };
  auto load = [&](const TaskCursor& cursor, int64_t unit, typename Format::Down* down) {
    const std::byte* tile = cursor.TileAddress<Format>(tile_of(unit), a);
    Format::template Load<ReadStreaming>(tile, a.hidden, column_of(unit), lane, down);
    Format::LoadBases(tile, a.hidden, lane, down);
    return reinterpret_cast<const uint32_t*>(a.activations)[size_t(tile_of(unit)) * 32 + lane];
  };

  constexpr int kAhead = 3;  // tiles in flight
  TaskCursor front(span, tile_of(begin));
  TaskCursor back = front;
  typename Format::Down down[kAhead];
  uint32_t activations[kAhead];
  auto advance = [&](TaskCursor* cursor, int64_t unit) {
    if (tile_of(unit) == 0) *cursor = TaskCursor(span, 0);
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
          Flush<Format>(span.tasks[task], a.hidden, column, lane, a.output, out);
          task = back.index();
          column = column_of(unit);
        }
        Format::MultiplyDown(down[i], activations[i], lane, out, NothingToLoad());
        std::byte* const fill = FillAddress<Format>(back.task(), tile_of(unit), a);
        if (fill != nullptr) Format::Store(down[i], a.hidden, column, lane, fill);
        if (unit + kAhead < end) {
          advance(&front, unit + kAhead);
          activations[i] = load(front, unit + kAhead, &down[i]);
        }
      }
    }
  }
  Flush<Format>(span.tasks[task], a.hidden, column, lane, a.output, out);
}

// Dynamic shared memory of a block.
template <class Format>
int SharedBytes(int hidden, LinkAccess link) {
  return IsBulk(link) ? std::max(TokenBytes(hidden), LinkSharedBytes<Format>(hidden, link))
                      : TokenBytes(hidden);
}
template <class Format, class Sources>
int FusedSharedBytes(int hidden, LinkAccess link) {
  return std::max(SharedBytes<Format>(hidden, link), TokenRegion(hidden) +
                                                         Sources::GateUp::SharedBytes(hidden) +
                                                         Sources::Down::SharedBytes(hidden));
}

// Whether the current device gives a block so much beside what is static.
bool FitsIntoSharedMemory(int dynamic_bytes) {
  constexpr int kStaticBytes = static_cast<int>(sizeof(TileState)) + 1024;
  int device = 0;
  int most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return dynamic_bytes + kStaticBytes <= most;
}

template <class Format>
LinkAccess AccessFor(int hidden) {
  if (FitsIntoSharedMemory(LinkSharedBytes<Format>(hidden, LinkAccess::kBulk))) {
    return LinkAccess::kBulk;
  }
  // From the cache a warp's columns are read without asking where the row ends.
  const bool whole_columns = hidden % kWarpColumns == 0;
  const bool fits = FitsIntoSharedMemory(LinkSharedBytes<Format>(hidden, LinkAccess::kBulkAlone));
  return whole_columns && fits && hidden > kSliceColumns ? LinkAccess::kBulkAlone
                                                         : LinkAccess::kPlain;
}

// Calls function(kernel, its dynamic shared memory) with the fused kernel that the device has room
// for.
template <class Format, class Function>
auto WithFusedKernel(int hidden, LinkAccess link, const Function& function) {
  const int staged = FusedSharedBytes<Format, StagedTiles<Format>>(hidden, link);
  if (FitsIntoSharedMemory(staged))
    return function(FusedTiles<Format, StagedTiles<Format>>, staged);
  return function(FusedTiles<Format, RegisterTiles<Format>>,
                  FusedSharedBytes<Format, RegisterTiles<Format>>(hidden, link));
}

template <class Format>
cudaError_t Prepare(int hidden) {
  const LinkAccess link = AccessFor<Format>(hidden);
  if (hidden <= kSliceColumns) {
    const cudaError_t error = WithFusedKernel<Format>(hidden, link, [](auto kernel, int bytes) {
      return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaFuncSetAttribute(GateUpTiles<Format>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              SharedBytes<Format>(hidden, link));
}

template <class Format>
void LaunchTwoKernels(const ExpertTilesArguments& a, TilesOf of, int bytes, cudaStream_t stream) {
  GateUpTiles<Format><<<a.multiprocessors, kThreads, bytes, stream>>>(a, of);
  DownTiles<Format><<<a.multiprocessors, kThreads, 0, stream>>>(a, of);
}

template <class Format>
void Launch(const ExpertTilesArguments& a, cudaStream_t stream) {
  const int bytes = SharedBytes<Format>(a.hidden, a.link);
  const TilesOf of = IsBulk(a.link) ? TilesOf::kBoth : TilesOf::kVram;
  if (a.joined_tasks > 0) {
    LaunchTwoPass(a, stream);
  } else if (a.hidden <= kSliceColumns) {
    WithFusedKernel<Format>(a.hidden, a.link, [&](auto kernel, int fused_bytes) {
      LaunchAhead(kernel,
                  {.grid = unsigned(a.multiprocessors),
                   .block = kThreads,
                   .shared_bytes = size_t(fused_bytes)},
                  stream, a, of);
    });
  } else {
    LaunchTwoKernels<Format>(a, of, bytes, stream);
  }
  if (a.link == LinkAccess::kPlain) LaunchTwoKernels<Format>(a, TilesOf::kLink, bytes, stream);
}

}  // namespace

LinkAccess LinkAccessFor(ExpertFormatKind format, int hidden) {
  return format == ExpertFormatKind::kBF12 ? AccessFor<Bf12Experts>(hidden)
                                           : AccessFor<Bf16Experts>(hidden);
}

int JoinedTasksFor(bool two_passes, ExpertFormatKind format, int hidden, int rows, int top_k,
                   int num_experts) {
  if (!two_passes) return 0;
  // So that experts of twice the tokens of the mean are read once. Where none is to be joined, and
  // one pass holds all columns, it is faster.
  const int tokens = 2 * rows * top_k / num_experts;
  // Of bf12 one pass is fast enough to read the weights twice.
  const int most = 2 * kTaskTokens - (format == ExpertFormatKind::kBF12 ? 0 : 1);
  if (hidden <= kSliceColumns && (rows <= kTaskTokens || tokens <= most)) return 0;
  if (rows <= kTaskTokens) return 1;
  if (tokens > 2 * kTaskTokens) return kMostJoinedTasks;
  // Tokens of long rows are faster from shared memory (two_pass_experts.cu), where those of two
  // tasks are.
  const bool long_rows = hidden > 2 * kSliceColumns;
  return tokens > kTaskTokens / 2 || long_rows ? 2 : 1;
}

size_t ExpertTilesScratchBytes(int max_tiles) { return size_t(max_tiles) * kTileActivationBytes; }

cudaError_t PrepareExpertTiles(int hidden) {
  for (const cudaError_t error : {Prepare<Bf16Experts>(hidden), Prepare<Bf12Experts>(hidden),
                                  TwoPassSupports() ? PrepareTwoPass(hidden) : cudaSuccess}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
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
