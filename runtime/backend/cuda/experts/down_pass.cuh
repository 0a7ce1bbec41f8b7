// The second of two passes over experts in VRAM (two_pass_experts.h): a warp keeps 128 columns of
// the output of an expert's tokens in registers while the down rows of its neurons come through a
// ring of stages, tile by tile, with their activations. A block's warps take neighbouring columns;
// blocks share out (slice of the columns, tile), slice by slice.
#pragma once

#include "runtime/backend/cuda/experts/tile_groups.cuh"
#include "runtime/backend/cuda/primitives/stage_ring.cuh"

namespace moed::backend {

// Slices of the columns, of `warps` times 128 at most, and warps that have columns in one.
__host__ __device__ constexpr int DownPieces(int hidden) {
  return (hidden + kWarpColumns - 1) / kWarpColumns;
}
__host__ __device__ constexpr int DownSlices(int hidden, int warps) {
  return (DownPieces(hidden) + warps - 1) / warps;
}
__host__ __device__ constexpr int DownSlicePieces(int hidden, int warps) {
  return (DownPieces(hidden) + DownSlices(hidden, warps) - 1) / DownSlices(hidden, warps);
}

// How a stage lies in shared memory: eight rows, 16 bytes beyond a multiple of 128 apart, so that
// four neurons lie in different banks; then the activations of the joined tasks.
template <class Format, int kTokenTiles, int kWarps>
struct DownLayout {
  __host__ __device__ static constexpr int RowStride() {
    return Format::ColumnBytes(kWarps * kWarpColumns) + 16;
  }
  __host__ __device__ static constexpr int ActivationsOffset() {
    return kTileNeurons * RowStride();
  }
  __host__ __device__ static constexpr int StageBytes() {
    return (ActivationsOffset() + kTokenTiles * kTileActivationBytes + 127) / 128 * 128;
  }
  static constexpr int kRingBytes = 220 << 10;
  __host__ __device__ static constexpr int Stages() { return kRingBytes / StageBytes(); }
  __host__ __device__ static constexpr int SharedBytes() { return Stages() * StageBytes(); }
};

#if __CUDA_ARCH__ >= 900

// Where a warp stands in its block's (slice, tile) units.
struct DownPlace {
  int slice;
  int task;
  int tile;  // of the span

  __device__ DownPlace(const ExpertTaskSpan& span, int unit)
      : slice(unit / span.num_tiles), tile(unit % span.num_tiles) {
    task = TaskCursor(span, tile).index();
  }
  // `count` tiles on, within an expert or just past it.
  __device__ void Advance(const ExpertTaskSpan& span, int count) {
    tile += count;
    const ExpertTask& now = span.tasks[task];
    if (tile < now.first_tile + now.num_tiles) return;
    task += now.num_joined;
    if (tile < span.num_tiles) return;
    ++slice;
    tile = task = 0;
  }
};

template <class Format, int kTokenTiles, int kWarps>
class DownPass {
 public:
  using Layout = DownLayout<Format, kTokenTiles, kWarps>;
  using Ring = StageRing<Layout::Stages()>;
  using Barriers = StageBarriers<Layout::Stages()>;

  // Units [begin, end).
  __device__ DownPass(const ExpertTilesArguments& a, const ExpertTaskSpan& span, int begin, int end,
                      std::byte* memory, Barriers* barriers)
      : a_(a),
        span_(span),
        ring_(memory, Layout::StageBytes(), barriers, DownSlicePieces(a.hidden, kWarps)),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        units_(end - begin),
        place_(span, begin),
        fill_(place_),
        to_fill_(units_) {}

  __device__ void Run() {
    if (warp_ >= DownSlicePieces(a_.hidden, kWarps)) return;
    LookAtTask();
    for (int i = 0; i < Layout::Stages(); ++i) Fill(/*first_round=*/true);
    while (units_ > 0) {
      const ExpertTask* const tasks = span_.tasks + place_.task;
      const int num_joined = tasks->num_joined;
      const int count = min(tasks->first_tile + tasks->num_tiles - place_.tile, units_);
      const int column = FirstColumn(place_.slice) + warp_ * kWarpColumns;
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        ring_.WaitForFill(read_);
        MultiplyJoined<1>(num_joined, a_.hidden - column);
        ring_.Leave(read_);
        Fill(/*first_round=*/false);
        read_.Next();
      }
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        if (n < num_joined) Flush<Format>(tasks[n], a_.hidden, column, lane_, a_.output, out_[n]);
      }
      units_ -= count;
      place_.Advance(span_, count);
    }
  }

 private:
  __device__ int FirstColumn(int slice) const {
    return slice * DownSlicePieces(a_.hidden, kWarps) * kWarpColumns;
  }

  // What the first warp wants of the task that it fills stages with.
  __device__ void LookAtTask() {
    const ExpertTask& task = span_.tasks[fill_.task];
    blob_ = task.blob;
    first_tile_ = task.first_tile;
    num_tiles_ = task.num_tiles;
    fill_joined_ = task.num_joined;
  }

  // By the first warp: the next tile's copies.
  __device__ void Fill(bool first_round) {
    if (warp_ > 0 || to_fill_ == 0) return;
    ring_.WaitToFill(fill_to_, first_round);
    const int first = FirstColumn(fill_.slice);
    const int columns = DownSlicePieces(a_.hidden, kWarps) * kWarpColumns;
    const int bytes = Format::ColumnBytes(min(columns, Format::RowValues(a_.hidden) - first));
    const int tile = fill_.tile - first_tile_;
    const uint32_t filled = ring_.Filled(fill_to_);
    std::byte* const stage = ring_.Stage(fill_to_);
    if (lane_ == 0) {
      ExpectBytes(filled, kTileNeurons * bytes + fill_joined_ * kTileActivationBytes);
    }
    __syncwarp();
    if (lane_ < kTileNeurons) {
      const std::byte* const neuron = blob_ + Format::TileOffset(tile, a_.hidden, a_.list_bytes) +
                                      lane_ * Format::NeuronBytes(a_.hidden);
      CopyBulk(SharedAddress(stage + lane_ * Layout::RowStride()),
               neuron + Format::RowOffset(2, a_.hidden) + Format::ColumnBytes(first), bytes,
               filled);
    } else if (const int n = lane_ - kTileNeurons; n < fill_joined_) {
      const auto* source = ActivationsOf(a_, fill_.task + n, num_tiles_, tile);
      CopyBulk(SharedAddress(stage + Layout::ActivationsOffset() + n * kTileActivationBytes),
               reinterpret_cast<const std::byte*>(source), kTileActivationBytes, filled);
    }
    fill_to_.Next();
    if (--to_fill_ == 0) return;
    if (++fill_.tile < first_tile_ + num_tiles_) return;
    --fill_.tile;
    fill_.Advance(span_, 1);
    LookAtTask();
  }

  // out_[n] += the tile that is read times the activations of each joined task n.
  template <int kTiles>
  __device__ void MultiplyJoined(int num_joined, int columns) {
    if constexpr (kTiles < kTokenTiles) {
      if (num_joined > kTiles) return MultiplyJoined<kTiles + 1>(num_joined, columns);
    }
    const std::byte* const stage = ring_.Stage(read_);
    const auto* activations =
        reinterpret_cast<const TileActivations*>(stage + Layout::ActivationsOffset());
    uint32_t pairs[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      pairs[n] = reinterpret_cast<const uint32_t*>(activations[n].tokens)[lane_];
    }
    typename Format::Down down;
    Format::ReadDown(stage + Format::ColumnBytes(warp_ * kWarpColumns), Layout::RowStride(),
                     columns, lane_, reinterpret_cast<const std::byte*>(activations->down_bases),
                     &down);
    Format::template MultiplyDown<kTiles>(down, pairs, lane_, out_, NothingToLoad());
  }

  const ExpertTilesArguments& a_;
  const ExpertTaskSpan& span_;
  Ring ring_;
  int warp_;
  int lane_;
  int units_;
  DownPlace place_;
  typename Ring::Place read_;
  DownPlace fill_;
  int to_fill_;
  typename Ring::Place fill_to_;
  const std::byte* blob_;
  int first_tile_;
  int num_tiles_;
  int fill_joined_;
  float out_[kTokenTiles][8][4] = {};
};

#endif

}  // namespace moed::backend
