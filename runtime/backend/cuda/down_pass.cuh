// The second of two passes over experts in VRAM (two_pass_experts.h): a warp keeps 128 columns of
// the output of an expert's tokens in registers and streams through the down rows of its neurons. A
// block's warps take neighbouring columns; blocks share out (slice of the columns, tile), slice by
// slice. What is on its way lies in shared memory, where each lane has a ring of its own: nothing
// waits for anything but its own copies.
#pragma once

#include "runtime/backend/cuda/async_copy.cuh"
#include "runtime/backend/cuda/expert_tile_walk.cuh"

namespace moed::backend {

// Slices of the columns, of `warps` times 128 at most, as many in each as can be.
__host__ __device__ constexpr int DownPieces(int hidden) {
  return (hidden + kWarpColumns - 1) / kWarpColumns;
}
__host__ __device__ constexpr int DownSlices(int hidden, int warps) {
  return (DownPieces(hidden) + warps - 1) / warps;
}
__host__ __device__ constexpr int DownSlicePieces(int hidden, int warps) {
  return (DownPieces(hidden) + DownSlices(hidden, warps) - 1) / DownSlices(hidden, warps);
}

// Where a warp stands in its block's (slice, tile) units: in shared memory, because it is wanted
// only when one expert's tiles are over. All lanes write the same.
struct DownPlace {
  int slice;
  int task;
  int tile;  // of the span, the first of those that are now walked

  // At unit `unit`.
  __device__ void Set(const ExpertTaskSpan& span, int unit) {
    slice = unit / span.num_tiles;
    tile = unit % span.num_tiles;
    task = TaskCursor(span, tile).index();
  }
  // Past the expert.
  __device__ void Next(const ExpertTaskSpan& span) {
    const ExpertTask& now = span.tasks[task];
    tile = now.first_tile + now.num_tiles;
    task += now.num_joined;
    if (tile < span.num_tiles) return;
    ++slice;
    tile = task = 0;
  }
};

// The tiles of one expert on their way to a warp.
struct DownTiles {
  const std::byte* blob;
  const uint32_t* activations;  // of the expert's first task, in words of two neurons
  int num_tiles;                // of the expert
  int tile;                     // of the expert
  int left;                     // from this one on
  int num_joined;

  __device__ DownTiles(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                       const DownPlace& place) {
    constexpr int kWords = kTaskTokens * kTileNeurons / 2;
    const ExpertTask& task = span.tasks[place.task];
    blob = task.blob;
    num_tiles = task.num_tiles;
    tile = place.tile - task.first_tile;
    left = num_tiles - tile;
    num_joined = task.num_joined;
    activations = reinterpret_cast<const uint32_t*>(a.activations) +
                  size_t(place.task) * num_tiles * kWords + threadIdx.x % 32;
  }
};

// A lane's ring of tiles on their way.
template <class Format, int kTokenTiles, int kWarps, int kSlots>
class DownRing {
 public:
  static constexpr int kWords = kTokenTiles + Format::kDownWords;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSlotBytes = kThreads * (4 * 16 + kWords * 4);
  static constexpr int kBytes = kSlots * kSlotBytes;

  __device__ explicit DownRing(std::byte* memory)
      : pieces_(reinterpret_cast<uint4*>(memory) + threadIdx.x),
        words_(reinterpret_cast<uint32_t*>(memory + 4 * 16 * kThreads) + threadIdx.x) {}

  __device__ void Fetch(const ExpertTilesArguments& a, const DownTiles& tiles, int column,
                        int slot) const {
    constexpr int kTileWords = kTaskTokens * kTileNeurons / 2;
    const int lane = threadIdx.x % 32;
    const std::byte* tile = tiles.blob + Format::TileOffset(tiles.tile, a.hidden, a.list_bytes);
    uint4* const pieces = Pieces(slot);
    uint32_t* const words = Words(slot);
    Format::ForEachDownPiece(tile, a.hidden, column, lane,
                             [&](int i, const std::byte* source, bool inside) {
                               CopyAsyncOrZeros(SharedAddress(pieces + i * kThreads), source,
                                                inside);
                             });
    if constexpr (Format::kDownWords > 0) {
#pragma unroll
      for (int i = 0; i < Format::kDownWords; ++i) {
        CopyWordAsync(SharedAddress(words + i * kThreads),
                      Format::DownWord(tile, a.hidden, lane, i));
      }
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      if (n < tiles.num_joined) {
        CopyWordAsync(SharedAddress(words + (Format::kDownWords + n) * kThreads),
                      tiles.activations + size_t(n * tiles.num_tiles + tiles.tile) * kTileWords);
      }
    }
  }

  // out[n] += the tile of `slot` times the activations of joined task n < kTiles.
  template <int kTiles>
  __device__ void Multiply(int slot, float (*out)[8][4]) const {
    const uint4* const source = Pieces(slot);
    const uint32_t* const words = Words(slot);
    const uint4 pieces[4] = {source[0], source[kThreads], source[2 * kThreads],
                             source[3 * kThreads]};
    uint32_t own[Format::kDownWords + kTiles];
#pragma unroll
    for (int i = 0; i < Format::kDownWords + kTiles; ++i) own[i] = words[i * kThreads];
    Format::template MultiplyDown<kTiles>(Format::MakeDown(pieces, own), own + Format::kDownWords,
                                          threadIdx.x % 32, out, NothingToLoad());
  }

 private:
  __device__ uint4* Pieces(int slot) const { return pieces_ + slot * (kSlotBytes / 16); }
  __device__ uint32_t* Words(int slot) const { return words_ + slot * (kSlotBytes / 4); }

  uint4* pieces_;
  uint32_t* words_;
};

template <class Ring, int kTokenTiles, int kTiles = 1>
__device__ void MultiplyJoined(const Ring& ring, int slot, int num_joined, float (*out)[8][4]) {
  if constexpr (kTiles < kTokenTiles) {
    if (num_joined > kTiles) {
      MultiplyJoined<Ring, kTokenTiles, kTiles + 1>(ring, slot, num_joined, out);
      return;
    }
  }
  ring.template Multiply<kTiles>(slot, out);
}

// Units [begin, end) of a block. `places`: the warp's two; `memory`: DownRing::kBytes.
template <class Format, int kTokenTiles, int kWarps, int kSlots>
__device__ void RunDownPass(const ExpertTilesArguments& a, const ExpertTaskSpan& span, int begin,
                            int end, DownPlace* places, std::byte* memory) {
  using Ring = DownRing<Format, kTokenTiles, kWarps, kSlots>;
  const int slice_pieces = DownSlicePieces(a.hidden, kWarps);
  const int piece = threadIdx.x / 32;
  if (piece >= slice_pieces) return;
  DownPlace& front = places[0];
  DownPlace& back = places[1];
  const auto column_of = [&](const DownPlace& place) {
    return (place.slice * slice_pieces + piece) * kWarpColumns;
  };
  front.Set(span, begin);
  back.Set(span, begin);
  __syncwarp();
  const Ring ring(memory);
  DownTiles tiles(a, span, front);
  int front_column = column_of(front);
  int to_fetch = end - begin;
  int front_slot = 0;
  const auto fetch = [&] {
    if (to_fetch > 0) {
      if (tiles.left == 0) {
        __syncwarp();
        front.Next(span);
        __syncwarp();
        tiles = DownTiles(a, span, front);
        front_column = column_of(front);
      }
      ring.Fetch(a, tiles, front_column, front_slot);
      ++tiles.tile;
      --tiles.left;
      --to_fetch;
    }
    front_slot = front_slot + 1 == kSlots ? 0 : front_slot + 1;
    CommitCopies();
  };
  for (int i = 0; i < kSlots - 1; ++i) fetch();
  float out[kTokenTiles][8][4] = {};
  int slot = 0;
  for (int unit = begin; unit < end;) {
    const ExpertTask* const tasks = span.tasks + back.task;
    const int num_joined = tasks->num_joined;
    const int count = min(tasks->first_tile + tasks->num_tiles - back.tile, end - unit);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      WaitForCopies<kSlots - 2>();
      fetch();
      MultiplyJoined<Ring, kTokenTiles>(ring, slot, num_joined, out);
      slot = slot + 1 == kSlots ? 0 : slot + 1;
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      if (n < num_joined) {
        Flush<Format>(tasks[n], a.hidden, column_of(back), threadIdx.x % 32, a.output, out[n]);
      }
    }
    unit += count;
    __syncwarp();
    if (unit < end) back.Next(span);
    __syncwarp();
  }
}

}  // namespace moed::backend
