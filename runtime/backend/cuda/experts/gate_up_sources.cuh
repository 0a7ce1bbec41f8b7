// Where the gate and up rows of a tile come from while a block walks through tiles in VRAM
// (expert_tiles.cu): registers, loaded a tile ahead; or shared memory, which bulk copies fill two
// tiles ahead. The latter keeps more bytes on their way, which is what sets the speed, where a
// block has room for it.
#pragma once

#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"
#include "runtime/backend/cuda/experts/weight_readers.cuh"
#include "runtime/backend/cuda/primitives/block_ring.cuh"

namespace moed::backend {

template <class Format>
class RegisterGateUp {
 public:
  static constexpr int kBarriers = 0;
  __host__ __device__ static int SharedBytes(int) { return 0; }

  __device__ RegisterGateUp(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                            TileRange range, int column, std::byte*, uint64_t*)
      : a_(a), cursor_(span, range.begin), end_(range.end), column_(column) {
    Format::template Load<ReadStreaming>(cursor_.TileAddress<Format>(range.begin, a), a.hidden,
                                         column, threadIdx.x % 32, &weights_);
  }

  // Adds gate and up of `tile` to `sums`, as Format::MultiplyGateUp; its headers to `headers`. The
  // tiles one after the other.
  __device__ void Multiply(int tile, const __nv_bfloat16* tokens, float (&sums)[4],
                           uint32_t (&headers)[kTileNeurons][8]) {
    const std::byte* next = nullptr;
    if (tile + 1 < end_) {
      cursor_.MoveTo(tile + 1);
      next = cursor_.TileAddress<Format>(tile + 1, a_);
    }
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) Format::StoreHeader(Format::HeaderOf(weights_), lane, headers);
    Format::MultiplyGateUp(weights_, tokens, lane, sums, [&](auto piece) {
      if (next == nullptr) return;
      Format::template LoadPiece<ReadStreaming, decltype(piece)::value>(next, a_.hidden, column_,
                                                                        lane, &weights_);
    });
  }
  // All warps have multiplied `tile`.
  __device__ void Release(int) {}

 private:
  const ExpertTilesArguments& a_;
  TaskCursor cursor_;
  int end_;
  int column_;
  typename Format::GateUp weights_;
};

template <class Format>
class StagedGateUp {
 public:
  static constexpr int kBarriers = Format::kStagedTiles;

  __host__ __device__ static int SlotBytes(int hidden) {
    return kTileNeurons * static_cast<int>(ReadStaged::Stride(0, Format::GateUpBytes(hidden)));
  }
  __host__ __device__ static int SharedBytes(int hidden) { return kBarriers * SlotBytes(hidden); }

  __device__ StagedGateUp(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                          TileRange range, int column, std::byte* memory, uint64_t* barriers)
      : a_(a),
        addresses_(span, range),
        begin_(range.begin),
        column_(column),
        ring_(memory, SlotBytes(a.hidden), barriers) {
    for (int i = 0; i < kBarriers; ++i) Fetch(begin_ + i);
  }

  __device__ void Multiply(int tile, const __nv_bfloat16* tokens, float (&sums)[4],
                           uint32_t (&headers)[kTileNeurons][8]) {
    const int lane = threadIdx.x % 32;
    const std::byte* const neuron =
        ring_.Wait(tile - begin_) + lane / 4 * (SlotBytes(a_.hidden) / kTileNeurons);
    const auto to_up = static_cast<int>(Format::RowOffset(1, a_.hidden) - Format::kHeaderBytes);
    typename Format::GateUp weights;
    Format::ReadGateUp(neuron + Format::kHeaderBytes + Format::ColumnBytes(column_), to_up,
                       a_.hidden - column_, lane, &weights);
    Format::template MultiplyGateUp<1>(weights, Format::ReadBases(neuron),
                                       TokenPieces{tokens + lane % 4 * 8, 0}, &sums,
                                       NothingToLoad());
    if (threadIdx.x < 32) Format::StoreHeader(Format::ReadHeader(neuron, lane), lane, headers);
  }
  __device__ void Release(int tile) { Fetch(tile + kBarriers); }

 private:
  __device__ void Fetch(int tile) {
    const auto bytes = static_cast<uint32_t>(Format::GateUpBytes(a_.hidden));
    ring_.Fetch(tile - begin_, addresses_.At(tile, a_),
                {.bytes = bytes,
                 .source_stride = Format::NeuronBytes(a_.hidden),
                 .slot_stride = static_cast<uint32_t>(ReadStaged::Stride(0, bytes))});
  }

  const ExpertTilesArguments& a_;
  TileAddresses<Format> addresses_;
  int begin_;
  int column_;
  // Behind each copy come, at least, the next one and, where there are such, down rows.
  BlockRing<kBarriers, kTileNeurons, 0, Format::kStagedDownTiles == 0 ? kBarriers - 1 : 2> ring_;
};

}  // namespace moed::backend
