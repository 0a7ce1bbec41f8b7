// Where the down rows of a tile come from while a block walks through tiles in VRAM
// (fused_walk.cuh): registers, loaded while the next tile's gate and up are multiplied; or shared
// memory, which bulk copies fill two tiles ahead. Loads into registers queue behind the copies that
// bring gate and up, so that warps wait for them: bf12, which leaves room for both, takes the
// latter.
#pragma once

#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"
#include "runtime/backend/cuda/experts/weight_readers.cuh"
#include "runtime/backend/cuda/primitives/block_ring.cuh"

namespace moed::backend {

template <class Format>
class RegisterDown {
 public:
  static constexpr int kBarriers = 0;
  __host__ __device__ static int SharedBytes(int) { return 0; }

  __device__ RegisterDown(const ExpertTilesArguments& a, const ExpertTaskSpan&, TileRange,
                          int column, std::byte*, uint64_t*)
      : a_(a), column_(column) {}

  // Begins to load the rows of `tile`, which lies at `address`; those before it have been read.
  __device__ void Load(int, const std::byte* address) {
    Format::template Load<ReadStreaming>(address, a_.hidden, column_, threadIdx.x % 32, &rows_);
  }
  // The tile that was loaded; `bases`: of its eight rows.
  __device__ typename Format::Down Read(int, const std::byte* bases) {
    Format::TakeBases(bases, threadIdx.x % 32, &rows_);
    return rows_;
  }

 private:
  const ExpertTilesArguments& a_;
  int column_;
  typename Format::Down rows_;
};

template <class Format>
class StagedDown {
 public:
  static constexpr int kBarriers = Format::kStagedDownTiles;

  __host__ __device__ static int SharedBytes(int hidden) { return kBarriers * SlotBytes(hidden); }

  __device__ StagedDown(const ExpertTilesArguments& a, const ExpertTaskSpan& span, TileRange range,
                        int column, std::byte* memory, uint64_t* barriers)
      : a_(a),
        addresses_(span, range),
        begin_(range.begin),
        column_(column),
        ring_(memory, SlotBytes(a.hidden), barriers) {
    Fetch(begin_);
  }

  // As RegisterDown, but that the rows of `tile` have long been on their way, and it is the next
  // one's turn. All warps have read the tile before the last.
  __device__ void Load(int tile, const std::byte*) { Fetch(tile + 1); }
  __device__ typename Format::Down Read(int tile, const std::byte* bases) {
    const std::byte* const rows = ring_.Wait(tile - begin_) + Format::ColumnBytes(column_);
    typename Format::Down down;
    Format::ReadDown(rows, RowStride(a_.hidden), a_.hidden - column_, threadIdx.x % 32, bases,
                     &down);
    return down;
  }

 private:
  __host__ __device__ static int RowBytes(int hidden) {
    return static_cast<int>(Format::NeuronBytes(hidden) - Format::GateUpBytes(hidden));
  }
  // Loads of four rows that are answered together shall read different banks.
  __host__ __device__ static int RowStride(int hidden) {
    return (RowBytes(hidden) + 47) / 64 * 64 + 16;
  }
  __host__ __device__ static int SlotBytes(int hidden) {
    return (kTileNeurons * RowStride(hidden) + 127) / 128 * 128;
  }

  __device__ void Fetch(int tile) {
    const std::byte* const source = addresses_.At(tile, a_);
    ring_.Fetch(tile - begin_,
                source == nullptr ? nullptr : source + Format::GateUpBytes(a_.hidden),
                {.bytes = static_cast<uint32_t>(RowBytes(a_.hidden)),
                 .source_stride = Format::NeuronBytes(a_.hidden),
                 .slot_stride = static_cast<uint32_t>(RowStride(a_.hidden))});
  }

  const ExpertTilesArguments& a_;
  TileAddresses<Format> addresses_;
  int begin_;
  int column_;
  // The first warps fetch gate and up. Behind each copy come, at least, the next one and gate and
  // up of the tile after that.
  BlockRing<kBarriers, kTileNeurons, kTileWarps - kTileNeurons, 2> ring_;
};

}  // namespace moed::backend
