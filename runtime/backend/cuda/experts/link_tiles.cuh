// Experts that lie in mapped host memory: half a tile, four neurons, is fetched into shared memory
// by one bulk copy, which the link carries at full rate where plain loads reach two thirds, written
// on into the slot that its task fills, and multiplied from there for one of the joined tasks after
// another, whose tokens come anew from the L2 cache each time, which the link leaves time for: into
// shared memory, or, where the piece leaves no room there, with every product.
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

// Shared memory for a piece, then, for kBulk, the task's tokens.
template <class Format>
__host__ __device__ int LinkSharedBytes(int hidden, LinkAccess access) {
  return LinkPieceBytes<Format>(hidden) + (access == LinkAccess::kBulk ? TokenBytes(hidden) : 0);
}

// A task's tokens where they were computed. For those that are absent the first one stands; what
// comes of them is not used.
struct CachedTokens {
  const ExpertTilesArguments& a;
  const ExpertTask& task;

  __device__ const __nv_bfloat16* Row(int token) const {
    return a.x + size_t(task.token[token < task.num_tokens ? token : 0]) * a.hidden;
  }
};

// A piece from shared memory: gate and up over all columns, then down.
template <class Format, class Tokens>
__device__ void MultiplyLinkPiece(const ExpertTilesArguments& a, const std::byte* values,
                                  const Tokens& tokens, LinkGroup group, int warp, int lane,
                                  TileState* state) {
  float sums[4] = {};
  typename Format::GateUp gate_up;
  const __nv_bfloat16* const row = tokens.Row(lane / 4);
  for (int column = warp * kWarpColumns; column < a.hidden; column += kSliceColumns) {
    Format::template Load<ReadShared, kLinkNeurons>(values, a.hidden, column, lane, &gate_up);
    Format::MultiplyGateUp(gate_up, row + column, lane, sums, NothingToLoad());
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
template <class Format, LinkAccess kAccess>
__device__ void LinkTiles(const ExpertTilesArguments& a, const ExpertTaskSpan& span, int block,
                          int num_blocks, std::byte* memory, TileState* state) {
  constexpr bool kShared = kAccess == LinkAccess::kBulk;
  __shared__ uint64_t barrier;
  const int piece_bytes = LinkPieceBytes<Format>(a.hidden);
  auto* shared_tokens = reinterpret_cast<__nv_bfloat16*>(memory + piece_bytes);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const TileRange range(span, block, num_blocks);
  BlockRing<1> ring(memory, piece_bytes, &barrier);
  TaskCursor cursor(span, range.begin);
  int current = -1;  // the task in `state`, its tokens in `shared_tokens`
  const auto load = [&](int task) {
    if (task == current) return;
    current = task;
    LoadTask(span.tasks[task], state);
    if constexpr (kShared) LoadTokens(state->task, a.x, a.hidden, shared_tokens);
  };
  const auto tokens = [&] {
    if constexpr (kShared) {
      return SharedTokens{shared_tokens, a.hidden};
    } else {
      return CachedTokens{a, state->task};
    }
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
      MultiplyLinkPiece<Format>(a, values, tokens(), {first_neuron, half}, warp, lane, state);
    }
    ring.FinishReads();
    __syncthreads();
  }
  ring.FinishStores();
}

// The same as `a.link` says.
template <class Format>
__device__ void LinkTiles(const ExpertTilesArguments& a, const ExpertTaskSpan& span, int block,
                          int num_blocks, std::byte* memory, TileState* state) {
  if (a.link == LinkAccess::kBulk) {
    LinkTiles<Format, LinkAccess::kBulk>(a, span, block, num_blocks, memory, state);
  } else {
    LinkTiles<Format, LinkAccess::kBulkAlone>(a, span, block, num_blocks, memory, state);
  }
}

}  // namespace moed::backend
