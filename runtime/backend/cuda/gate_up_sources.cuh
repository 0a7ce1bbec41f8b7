// Where the gate and up rows of a tile come from while a block walks through tiles in VRAM
// (expert_tiles.cu): registers, loaded a tile ahead; or shared memory, which bulk copies fill
// several tiles ahead. The latter keeps more bytes on their way, which is what sets the speed,
// where a block has room for it.
#pragma once

#include "runtime/backend/cuda/block_ring.cuh"
#include "runtime/backend/cuda/expert_tile_walk.cuh"
#include "runtime/backend/cuda/weight_readers.cuh"

namespace moed::backend {

template <class Format>
class RegisterGateUp {
 public:
  static int SharedBytes(int) { return 0; }

  __device__ RegisterGateUp(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                            TileRange range, int column, std::byte*, uint64_t*)
      : a_(a), cursor_(span, range.begin), end_(range.end), column_(column) {
    Format::template Load<ReadStreaming>(cursor_.TileAddress<Format>(range.begin, a), a.hidden,
                                         column, threadIdx.x % 32, &weights_);
  }

  // As Format::MultiplyGateUp; the tiles one after the other.
  __device__ typename Format::Header Multiply(int tile, const __nv_bfloat16* tokens,
                                              float (&sums)[4]) {
    const std::byte* next = nullptr;
    if (tile + 1 < end_) {
      cursor_.MoveTo(tile + 1);
      next = cursor_.TileAddress<Format>(tile + 1, a_);
    }
    const int lane = threadIdx.x % 32;
    const typename Format::Header header = Format::HeaderOf(weights_);
    Format::MultiplyGateUp(weights_, tokens, lane, sums, [&](auto piece) {
      if (next == nullptr) return;
      Format::template LoadPiece<ReadStreaming, decltype(piece)::value>(next, a_.hidden, column_,
                                                                        lane, &weights_);
    });
    return header;
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
  static constexpr int kSlots = Format::kStagedTiles;

  __host__ __device__ static int SlotBytes(int hidden) {
    return kTileNeurons * static_cast<int>(ReadStaged::Stride(0, Format::GateUpBytes(hidden)));
  }
  static int SharedBytes(int hidden) { return kSlots * SlotBytes(hidden); }

  __device__ StagedGateUp(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                          TileRange range, int column, std::byte* memory, uint64_t* barriers)
      : a_(a),
        cursor_(span, range.begin),
        range_(range),
        column_(column),
        ring_(memory, SlotBytes(a.hidden), barriers) {
    for (int i = 0; i < kSlots; ++i) Fetch(range.begin + i);
  }

  __device__ typename Format::Header Multiply(int tile, const __nv_bfloat16* tokens,
                                              float (&sums)[4]) {
    const int lane = threadIdx.x % 32;
    const std::byte* values = ring_.Wait(tile - range_.begin);
    typename Format::GateUp weights;
    Format::template Load<ReadStaged>(values, a_.hidden, column_, lane, &weights);
    Format::MultiplyGateUp(weights, tokens, lane, sums, NothingToLoad());
    return Format::HeaderOf(weights);
  }
  __device__ void Release(int tile) { Fetch(tile + kSlots); }

 private:
  __device__ void Fetch(int tile) {
    const std::byte* source = nullptr;
    if (tile < range_.end) {
      cursor_.MoveTo(tile);
      source = cursor_.TileAddress<Format>(tile, a_);
    }
    const auto bytes = static_cast<uint32_t>(Format::GateUpBytes(a_.hidden));
    ring_.Fetch(tile - range_.begin, source,
                {.pieces = kTileNeurons,
                 .bytes = bytes,
                 .source_stride = Format::NeuronBytes(a_.hidden),
                 .slot_stride = static_cast<uint32_t>(ReadStaged::Stride(0, bytes))});
  }

  const ExpertTilesArguments& a_;
  TaskCursor cursor_;
  TileRange range_;
  int column_;
  BlockRing<kSlots> ring_;
};

}  // namespace moed::backend
