// How a block walks the tiles of one task in VRAM with one barrier each: while all warps multiply
// the down rows of a tile, which were loaded a tile ahead, the next one's gate and up are summed.
// For hidden sizes of at most 2048, whose sums a block's registers hold (expert_tiles.cu).
#pragma once

#include "runtime/backend/cuda/expert_tile_walk.cuh"
#include "runtime/backend/cuda/weight_readers.cuh"

namespace moed::backend {

// GateUpSource: one of gate_up_sources.cuh.
template <class Format, class GateUpSource>
class FusedWalk {
 public:
  __device__ FusedWalk(const ExpertTilesArguments& a, GateUpSource& source,
                       const __nv_bfloat16* tokens, int column, TileState* state)
      : a_(a),
        source_(source),
        tokens_(tokens),
        state_(state),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        column_(column) {}

  // Gate and up of `tile`; then down of the tile before it unless it is the task's first.
  __device__ void Step(int tile, bool first) {
    float sums[4] = {};
    const typename Format::Header header =
        source_.Multiply(tile, tokens_ + lane_ / 4 * TokenStride(a_.hidden) + column_, sums);
    AddGateUpEscapes<Format>(a_, header, *state_, GroupOf(tile), tokens_, column_, lane_, sums);
    StorePartial(sums, tile & 1, warp_, lane_, state_);
    __syncthreads();
    source_.Release(tile);
    Activate(tile & 1, kTileNeurons, state_);
    const std::byte* address =
        state_->task.blob +
        Format::TileOffset(tile - state_->task.first_tile, a_.hidden, a_.list_bytes);
    if (first) {
      Format::template Load<ReadStreaming>(address, a_.hidden, column_, lane_, &down_);
    } else {
      FinishDown(tile - 1, [&](auto piece) {
        Format::template LoadPiece<ReadStreaming, decltype(piece)::value>(address, a_.hidden,
                                                                          column_, lane_, &down_);
      });
    }
    header_ = header;
  }

  // The down rows of the task's last tile, and its sums to the output.
  __device__ void Finish(int tile) {
    __syncthreads();
    FinishDown(tile, NothingToLoad());
    Flush<Format>(state_->task, a_.hidden, column_, lane_, a_.output, out_);
  }

 private:
  __device__ NeuronGroup<kTileNeurons> GroupOf(int tile) const {
    return {(tile - state_->task.first_tile) * kTileNeurons, tile & 1};
  }

  template <class Used>
  __device__ void FinishDown(int tile, const Used& used) {
    Format::TakeBases(header_, lane_, &down_);
    Format::MultiplyDown(down_, ActivationPair(*state_, tile & 1, lane_), lane_, out_, used);
    AddDownEscapes<Format>(a_, header_, *state_, GroupOf(tile), column_, lane_);
  }

  const ExpertTilesArguments& a_;
  GateUpSource& source_;
  const __nv_bfloat16* tokens_;
  TileState* state_;
  int warp_;
  int lane_;
  int column_;
  typename Format::Down down_;
  typename Format::Header header_;
  float out_[8][4] = {};
};

}  // namespace moed::backend
