// Experts that lie in mapped host memory, for up to 8 tokens a task: a tile of 8 neurons is fetched
// into shared memory by one bulk copy, which the link carries at full rate where plain loads reach
// two thirds, written on into the slot that its task fills, and multiplied from there. A block has
// one tile in flight; a few dozen blocks keep the link busy while others compute.
#pragma once

#include "runtime/backend/cuda/block_ring.cuh"
#include "runtime/backend/cuda/expert_tile_walk.cuh"

namespace moed::backend {

// Blocks that take the link; the others read VRAM meanwhile. From eight on the link is full.
inline constexpr int kLinkBlocks = 32;

__device__ inline int NumLinkBlocks(const ExpertTaskList& list) {
  return min(min(kLinkBlocks, int(gridDim.x) / 2), list.link.num_tiles);
}

template <class Format>
__host__ __device__ int LinkTileBytes(int hidden) {
  return kTileNeurons * static_cast<int>(Format::NeuronBytes(hidden));
}

// Shared memory for a tile, then the task's tokens.
template <class Format>
__host__ __device__ int LinkSharedBytes(int hidden) {
  return LinkTileBytes<Format>(hidden) + TokenBytes(hidden);
}

// One tile from shared memory: gate and up over all columns, then down.
template <class Format>
__device__ void MultiplyLinkTile(const ExpertTilesArguments& a, const std::byte* values,
                                 const __nv_bfloat16* tokens, int tile, int warp, int lane,
                                 TileState* state) {
  float sums[4] = {};
  typename Format::GateUp gate_up;
  for (int column = warp * kWarpColumns; column < a.hidden; column += kSliceColumns) {
    Format::template Load<ReadShared>(values, a.hidden, column, lane, &gate_up);
    Format::MultiplyGateUp(gate_up, tokens + lane / 4 * TokenStride(a.hidden) + column, lane, sums);
    AddGateUpEscapes<Format>(a, Format::HeaderOf(gate_up), *state, tile, tokens, column, lane,
                             sums);
  }
  StorePartial(sums, tile, warp, lane, state);
  __syncthreads();
  Activate(tile, state);
  __syncthreads();
  for (int column = warp * kWarpColumns; column < a.hidden; column += kSliceColumns) {
    typename Format::Down down;
    Format::template Load<ReadShared>(values, a.hidden, column, lane, &down);
    Format::TakeBases(Format::HeaderOf(gate_up), lane, &down);
    float out[8][4] = {};
    Format::MultiplyDown(down, ActivationPair(*state, tile, lane), lane, out);
    Flush<Format>(state->task, a.hidden, column, lane, a.output, out);
    AddDownEscapes<Format>(a, Format::HeaderOf(gate_up), *state, tile, column, lane);
  }
}

// Block `block` of `num_blocks` over the link's tiles. `memory`: LinkSharedBytes.
template <class Format>
__device__ void LinkTiles(const ExpertTilesArguments& a, const ExpertTaskSpan& span, int block,
                          int num_blocks, std::byte* memory, TileState* state) {
  __shared__ uint64_t barrier;
  const int tile_bytes = LinkTileBytes<Format>(a.hidden);
  auto* tokens = reinterpret_cast<__nv_bfloat16*>(memory + tile_bytes);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const TileRange range(span, block, num_blocks);
  BlockRing<1> ring(memory, tile_bytes, &barrier);
  TaskCursor cursor(span, range.begin);
  int current = -1;
  for (int tile = range.begin; tile < range.end; ++tile) {
    cursor.MoveTo(tile);
    ring.Fetch(tile - range.begin, cursor.TileAddress<Format>(tile, a));
    if (cursor.index() != current) {
      current = cursor.index();
      LoadTask(cursor.task(), state);
      LoadTokens(state->task, a.x, a.hidden, tokens);
    }
    const std::byte* values = ring.Wait(tile - range.begin);
    if (std::byte* const fill = FillAddress<Format>(state->task, tile, a); fill != nullptr) {
      ring.Store(tile - range.begin, fill);
      FillList<Format>(state->task, tile, a);
    }
    MultiplyLinkTile<Format>(a, values, tokens, tile, warp, lane, state);
    ring.FinishReads();
    __syncthreads();
  }
  ring.FinishStores();
}

}  // namespace moed::backend
