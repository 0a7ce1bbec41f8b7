// Where neurons and lists of escapes lie in a bf12 expert blob (backend/bf12.h), and walks over the
// escapes of some neurons by a warp, by the lanes of a neuron, or by threads that share them out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/bf12.h"
#include "runtime/backend/bf12_bits.h"
#include "runtime/backend/cuda/plan/expert_tasks.h"

namespace moed::backend {

// What a placeholder is off by.
__device__ __forceinline__ float Bf12Delta(uint32_t bits, uint32_t base) {
  return __uint_as_float(bits << 16) - __uint_as_float(base << 23);
}

struct Bf12Layout {
  __host__ __device__ static int RowValues(int hidden) { return (hidden + 127) / 128 * 128; }
  __host__ __device__ static size_t RowBytes(int hidden) {
    return size_t{3} * (RowValues(hidden) / 2);
  }
  __host__ __device__ static size_t NeuronBytes(int hidden) {
    return sizeof(Bf12Header) + 3 * RowBytes(hidden);
  }
  // Of the header and the gate and up rows.
  __host__ __device__ static size_t GateUpBytes(int hidden) {
    return sizeof(Bf12Header) + 2 * RowBytes(hidden);
  }
  // Where tile `tile` of 8 neurons begins; `list_bytes` is a list of escapes, behind every fourth.
  __device__ static size_t TileOffset(int tile, int hidden, int list_bytes) {
    return size_t(tile) * kTileNeurons * NeuronBytes(hidden) +
           size_t(tile / kListTiles) * list_bytes;
  }
  static constexpr int kListTiles = kBf12TileNeurons / kTileNeurons;
  // Where the list of escapes lies that tile `tile` shares with three others.
  __device__ static size_t ListOffset(int tile, int hidden, int list_bytes) {
    return TileOffset((tile / kListTiles + 1) * kListTiles, hidden, list_bytes) - list_bytes;
  }
};

struct Bf12Escapes : Bf12Layout {
  // A lane's part of its neuron's header, 8 bytes.
  using Header = uint2;

  // From a neuron in shared memory; and those of a tile's neurons to where TileState has them.
  __device__ static Header ReadHeader(const std::byte* neuron, int lane) {
    return reinterpret_cast<const uint2*>(neuron)[lane % 4];
  }
  __device__ static void StoreHeader(const Header& header, int lane,
                                     uint32_t (&headers)[kTileNeurons][8]) {
    reinterpret_cast<uint2*>(headers)[lane] = header;
  }

  // function(neuron of the tile, part, column, delta) for each escape of parts kFirst to kEnd - 1
  // in the warp's 128 columns from `column` on. All lanes of a warp call it, and it calls with all
  // of them. `header`: of kNeurons neurons of the expert at `blob`, the first of which is
  // `first_neuron`.
  template <int kFirst, int kEnd, int kNeurons, class Function>
  __device__ static void ForEachEscape(const Header& header, const std::byte* blob,
                                       int first_neuron, int hidden, int list_bytes, int column,
                                       int lane, const Function& function) {
    if (column >= hidden) return;
    const Columns columns = {RowValues(hidden) / kWarpBlockValues, column / kWarpBlockValues};
    const uint32_t bases = __shfl_sync(0xffffffffu, header.x, lane / 4 * 4);
    const int count = static_cast<int>(bases >> 24);
    const int t = lane % 4;
    Visit<kFirst, kEnd>(columns, header.y, 2 * t < count, lane / 4, bases, function);
    Visit<kFirst, kEnd>(columns, header.x, t > 0 && 2 * t - 1 < count, lane / 4, bases, function);
    if (!__any_sync(0xffffffffu, count > kBf12HeaderEscapes)) return;
    const int first = first_neuron % kBf12TileNeurons;
    const auto* list = reinterpret_cast<const Bf12TileEscape*>(
        blob + ListOffset(first_neuron / kTileNeurons, hidden, list_bytes));
    const int entries = list[0].neuron;
    for (int begin = 1; begin <= entries; begin += 32) {
      const Bf12TileEscape entry = begin + lane <= entries ? list[begin + lane] : Bf12TileEscape{};
      const int neuron = entry.neuron - first;
      const bool own = begin + lane <= entries && neuron >= 0 && neuron < kNeurons;
      const uint32_t word = entry.escape.position | uint32_t{entry.escape.bits} << 16;
      const uint32_t own_bases = __shfl_sync(0xffffffffu, header.x, own ? neuron * 4 : 0);
      Visit<kFirst, kEnd>(columns, word, own, neuron, own_bases, function);
    }
  }

  // function(part, column, delta) for each escape of the lane's neuron g of the tile. All lanes of
  // a warp call it; it calls with the four lanes of the neuron.
  template <class Function>
  __device__ static void ForEachEscapeOfTile(const Header& header, const std::byte* blob,
                                             int first_neuron, int hidden, int list_bytes, int lane,
                                             const Function& function) {
    const int row = RowValues(hidden);
    const uint32_t bases = __shfl_sync(0xffffffffu, header.x, lane / 4 * 4);
    const auto report = [&](uint32_t escape) {
      const int position = static_cast<int>(escape & 0xffff);
      const int part = position < row ? 0 : position < 2 * row ? 1 : 2;
      function(part, position - part * row, Bf12Delta(escape >> 16, bases >> 8 * part & 0xff));
    };
    const int count = static_cast<int>(bases >> 24);
    const int most = __reduce_max_sync(0xffffffffu, count);
    for (int i = 1; i <= min(most, kBf12HeaderEscapes); ++i) {
      const int source = lane / 4 * 4 + i / 2;
      const uint32_t even = __shfl_sync(0xffffffffu, header.x, source);
      const uint32_t odd = __shfl_sync(0xffffffffu, header.y, source);
      if (i <= count) report(i % 2 == 0 ? even : odd);
    }
    if (most <= kBf12HeaderEscapes) return;
    const int first = first_neuron % kBf12TileNeurons;
    const auto* list = reinterpret_cast<const Bf12TileEscape*>(
        blob + ListOffset(first_neuron / kTileNeurons, hidden, list_bytes));
    const int entries = list[0].neuron;
    for (int begin = 1; begin <= entries; begin += 32) {
      const Bf12TileEscape entry = begin + lane <= entries ? list[begin + lane] : Bf12TileEscape{};
      const int neuron = begin + lane <= entries ? entry.neuron - first : -1;
      const uint32_t word = entry.escape.position | uint32_t{entry.escape.bits} << 16;
      uint32_t pending = __ballot_sync(0xffffffffu, neuron >= 0 && neuron < kTileNeurons);
      for (; pending != 0; pending &= pending - 1) {
        const int source = __ffs(pending) - 1;
        const uint32_t escape = __shfl_sync(0xffffffffu, word, source);
        if (__shfl_sync(0xffffffffu, neuron, source) == lane / 4) report(escape);
      }
    }
  }

  // function(part, column, delta) for each `shares`-th, from `share` on, of the escapes of neuron
  // `neuron` of the expert at `blob`. `header`: in shared memory.
  template <class Function>
  __device__ static void ForEachShareOfEscapes(const Bf12Header& header, const std::byte* blob,
                                               int neuron, int hidden, int list_bytes, int share,
                                               int shares, const Function& function) {
    const int row = RowValues(hidden);
    const auto report = [&](const Bf12Escape& escape) {
      const int part = escape.position < row ? 0 : escape.position < 2 * row ? 1 : 2;
      function(part, escape.position - part * row, Bf12Delta(escape.bits, header.bases[part]));
    };
    const int count = header.num_escapes;
    for (int i = share; i < min(count, kBf12HeaderEscapes); i += shares) report(header.escapes[i]);
    if (count <= kBf12HeaderEscapes) return;
    ForEachShareOfListed(blob, neuron, hidden, list_bytes, share, shares, report);
  }
  // function(escape) for those of them that stand in the list.
  template <class Function>
  __device__ static void ForEachShareOfListed(const std::byte* blob, int neuron, int hidden,
                                              int list_bytes, int share, int shares,
                                              const Function& function) {
    const auto* list = reinterpret_cast<const Bf12TileEscape*>(
        blob + ListOffset(neuron / kTileNeurons, hidden, list_bytes));
    for (int i = 1 + share; i <= list[0].neuron; i += shares) {
      const Bf12TileEscape entry = list[i];
      if (entry.neuron == neuron % kBf12TileNeurons) function(entry.escape);
    }
  }

 private:
  static constexpr int kWarpBlockValues = kBf12PairBlockValues;

  // Blocks of 128 values: how many a row has, and which is the warp's.
  struct Columns {
    int row_blocks;
    int own;
  };

  // Calls function with each lane's escape that `present` says there is and that lies in the
  // warp's columns of one of the parts.
  template <int kFirst, int kEnd, class Function>
  __device__ static void Visit(const Columns& columns, uint32_t escape, bool present, int neuron,
                               uint32_t bases, const Function& function) {
    const int block = static_cast<int>(escape & 0xffff) / kWarpBlockValues;
    int part = -1;
#pragma unroll
    for (int p = kFirst; p < kEnd; ++p) {
      if (block == p * columns.row_blocks + columns.own) part = p;
    }
    const float delta = Bf12Delta(escape >> 16, bases >> 8 * max(part, 0) & 0xff);
    const int at = columns.own * kWarpBlockValues + static_cast<int>(escape % kWarpBlockValues);
    uint32_t pending = __ballot_sync(0xffffffffu, present && part >= 0);
    for (; pending != 0; pending &= pending - 1) {
      const int source = __ffs(pending) - 1;
      function(__shfl_sync(0xffffffffu, neuron, source), __shfl_sync(0xffffffffu, part, source),
               __shfl_sync(0xffffffffu, at, source), __shfl_sync(0xffffffffu, delta, source));
    }
  }
};

}  // namespace moed::backend
