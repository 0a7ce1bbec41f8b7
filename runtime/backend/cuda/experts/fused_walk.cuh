// How a block walks the tiles of one task in VRAM with one barrier each: behind it all warps
// multiply the down rows of the tile before, and go on to the next one's gate and up. For hidden
// sizes of at most 2048, whose sums a block's registers hold (expert_tiles.cu).
#pragma once

#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"
#include "runtime/backend/cuda/experts/tile_escapes.cuh"

namespace moed::backend {

// GateUp: one of gate_up_sources.cuh; Down: of down_sources.cuh.
template <class Format, class GateUp, class Down>
class FusedWalk {
 public:
  __device__ FusedWalk(const ExpertTilesArguments& a, GateUp& gate_up, Down& down,
                       const __nv_bfloat16* tokens, int column, TileState* state)
      : a_(a),
        gate_up_(gate_up),
        down_(down),
        tokens_(tokens),
        state_(state),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        column_(column) {}

  // Gate and up of `tile`; then down of the tile before it unless it is the task's first.
  __device__ void Step(int tile, bool first) {
    float sums[4] = {};
    const int buffer = tile & 1;
    gate_up_.Multiply(tile, tokens_ + lane_ / 4 * TokenStride(a_.hidden) + column_, sums,
                      state_->headers[buffer]);
    StorePartial(sums, buffer, warp_, lane_, state_);
    __syncthreads();
    // Starting the next copies keeps a warp from what others wait for. Where down rows are loaded
    // into registers they wait anyway.
    constexpr bool kReleaseLast = Down::kBarriers > 0;
    if (!kReleaseLast) gate_up_.Release(tile);
    ActivateTile(tile);
    if (!first) MultiplyDown(tile - 1);
    if (kReleaseLast) gate_up_.Release(tile);
    down_.Load(tile, state_->task.blob + Format::TileOffset(tile - state_->task.first_tile,
                                                            a_.hidden, a_.list_bytes));
  }

  // The down rows of the task's last tile, and its sums to the output.
  __device__ void Finish(int tile) {
    __syncthreads();
    MultiplyDown(tile);
    Flush<Format>(state_->task, a_.hidden, column_, lane_, a_.output, out_);
  }

 private:
  __device__ void ActivateTile(int tile) {
    const int buffer = tile & 1;
    if constexpr (Format::kHasEscapes) {
      const int first_neuron = (tile - state_->task.first_tile) * kTileNeurons;
      Activate(buffer, kTileNeurons, state_,
               TileEscapes(a_, state_, tokens_, {first_neuron, buffer}));
    } else {
      Activate(buffer, kTileNeurons, state_);
    }
  }

  __device__ void MultiplyDown(int tile) {
    const int buffer = tile & 1;
    const auto* bases = reinterpret_cast<const std::byte*>(state_->down_bases[buffer]);
    Format::MultiplyDown(down_.Read(tile, bases), ActivationPair(*state_, buffer, lane_), lane_,
                         out_, NothingToLoad());
  }

  const ExpertTilesArguments& a_;
  GateUp& gate_up_;
  Down& down_;
  const __nv_bfloat16* tokens_;
  TileState* state_;
  int warp_;
  int lane_;
  int column_;
  float out_[8][4] = {};
};

}  // namespace moed::backend
