// Experts that lie in mapped host memory: half a tile, four neurons, is fetched into shared memory
// by one bulk copy, which the link carries at full rate where plain loads reach two thirds, written
// on into the slot that its task fills, and multiplied from there for one of the joined tasks after
// another, whose tokens come anew from the L2 cache each time, which the link leaves time for.
// A block has one such piece in flight; a few dozen blocks keep the link busy while others compute.
#pragma once

#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"
#include "runtime/backend/cuda/experts/weight_readers.cuh"
#include "runtime/backend/cuda/primitives/block_ring.cuh"

namespace moed::backend {

// Blocks that take the link; the others read VRAM meanwhile. From eight on the link is full.
inline constexpr int kLinkBlocks = 32;
// Of one copy. A whole tile would take shared memory that the others' loads need as cache.
inline constexpr int kLinkNeurons = kTileNeurons / 2;
using LinkGroup = NeuronGroup<kLinkNeurons>;

__device__ inline int NumLinkBlocks(const ExpertTaskList& list) {
  return min(min(kLinkBlocks, int(gridDim.x) / 2), list.link.num_tiles);
}

template <class Format>
__host__ __device__ int LinkPieceBytes(int hidden) {
  return kLinkNeurons * static_cast<int>(Format::NeuronBytes(hidden));
}

// Shared memory for a piece, then the task's tokens.
template <class Format>
__host__ __device__ int LinkSharedBytes(int hidden) {
  return LinkPieceBytes<Format>(hidden) + TokenBytes(hidden);
}

// A piece from shared memory: gate and up over all columns, then down.
template <class Format>
__device__ void MultiplyLinkPiece(const ExpertTilesArguments& a, const std::byte* values,
                                  const __nv_bfloat16* tokens, LinkGroup group, int warp, int lane,
                                  TileState* state) {
  float sums[4] = {};
  typename Format::GateUp gate_up;
  for (int column = warp * kWarpColumns; column < a.hidden; column += kSliceColumns) {
    Format::template Load<ReadShared, kLinkNeurons>(values, a.hidden, column, lane, &gate_up);
    Format::MultiplyGateUp(gate_up, tokens + lane / 4 * TokenStride(a.hidden) + column, lane, sums,
                           NothingToLoad());
    AddGateUpEscapes<Format>(a, Format::HeaderOf(gate_up), *state, group, tokens, column, lane,
                             sums);
  }
  StorePartial(sums, group.buffer, warp, lane, state);
  __syncthreads();
  Activate(group.buffer, kLinkNeurons, state);
  __syncthreads();
  for (int column = warp * kWarpColumns; column < a.hidden; column += kSliceColumns) {
    typename Format::Down down;
    Format::template Load<ReadShared, kLinkNeurons>(values, a.hidden, column, lane, &down);
    Format::TakeBases(Format::HeaderOf(gate_up), lane, &down);
    float out[8][4] = {};
    Format::MultiplyDown(down, ActivationPair(*state, group.buffer, lane), lane, out,
                         NothingToLoad());
    Flush<Format>(state->task, a.hidden, column, lane, a.output, out);
    AddDownEscapes<Format>(a, Format::HeaderOf(gate_up), *state, group, column, lane);
  }
}

// Block `block` of `num_blocks` over the link's tiles. `memory`: LinkSharedBytes.
template <class Format>
__device__ void LinkTiles(const ExpertTilesArguments& a, const ExpertTaskSpan& span, int block,
                          int num_blocks, std::byte* memory, TileState* state) {
  __shared__ uint64_t barrier;
  const int piece_bytes = LinkPieceBytes<Format>(a.hidden);
  auto* tokens = reinterpret_cast<__nv_bfloat16*>(memory + piece_bytes);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const TileRange range(span, block, num_blocks);
  BlockRing<1> ring(memory, piece_bytes, &barrier);
  TaskCursor cursor(span, range.begin);
  int current = -1;  // the task in `state`, its tokens in `tokens`
  const auto load = [&](int task) {
    if (task == current) return;
    current = task;
    LoadTask(span.tasks[task], state);
    LoadTokens(state->task, a.x, a.hidden, tokens);
  };
  for (int piece = 0; piece < 2 * (range.end - range.begin); ++piece) {
    const int tile = range.begin + piece / 2;
    const int half = piece % 2;
    cursor.MoveTo(tile);
    ring.Fetch(piece, cursor.TileAddress<Format>(tile, a) + half * piece_bytes);
    load(cursor.index());
    const std::byte* values = ring.Wait(piece);
    if (std::byte* const fill = FillAddress<Format>(state->task, tile, a); fill != nullptr) {
      ring.Store(piece, fill + half * piece_bytes);
      if (half == 1) FillList<Format>(state->task, tile, a);
    }
    const int first_neuron = (tile - state->task.first_tile) * kTileNeurons + half * kLinkNeurons;
    const int num_joined = state->task.num_joined;
    for (int n = 0; n < num_joined; ++n) {
      load(cursor.index() + n);
      MultiplyLinkPiece<Format>(a, values, tokens, {first_neuron, half}, warp, lane, state);
    }
    ring.FinishReads();
    __syncthreads();
  }
  ring.FinishStores();
}

}  // namespace moed::backend
