// The bf12 expert blob (backend/bf12.h) as tensor-core fragments: what bf16_experts.cuh says of
// bf16, decoded on the way into the products. A warp's 128 columns are one block of each row.
//
// Within a tile of 8 neurons, lane = 4 g + t:
//   gate and up: neuron g, words 8 t .. 8 t + 7 of the block's three planes: columns
//                32 c + 8 t .. + 7 for c = 0..3, as in bf16
//   down:        neurons 2 t and 2 t + 1, words 8 (g % 4) .. + 7 of plane g / 4 and of the nibbles:
//                columns 64 (g / 4) + 8 (g % 4) .. + 7, and 32 further on
//   header:      bytes 8 t .. 8 t + 7 of neuron g's
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/backend/bf12.h"
#include "runtime/backend/bf12_bits.h"
#include "runtime/backend/cuda/expert_tasks.h"
#include "runtime/backend/cuda/tensor_core.cuh"
#include "runtime/backend/cuda/weight_readers.cuh"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

// What a placeholder is off by.
__device__ __forceinline__ float Bf12Delta(uint32_t bits, uint32_t base) {
  return __uint_as_float(bits << 16) - __uint_as_float(base << 23);
}

struct Bf12Experts {
  static constexpr ExpertFormatKind kKind = ExpertFormatKind::kBF12;
  static constexpr int kStagedTiles = 3;  // gate_up_sources.cuh: as many as shared memory holds
  static constexpr bool kHasEscapes = true;
  static constexpr int kDownWords = 2;  // of a lane, beside the down rows: its neurons' headers'
  using Header = uint2;
  struct Bases {  // of the gate and up row of the lane's neuron, in pairs
    uint32_t gate;
    uint32_t up;
  };

  struct GateUp {
    uint4 gate[3];
    uint4 up[3];
    Header header;
  };
  struct Down {
    uint4 even[2];      // neuron 2t: bytes, nibbles
    uint4 odd[2];       // neuron 2t + 1
    uint32_t bases[2];  // of the two
  };

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

  __device__ static Header HeaderOf(const GateUp& values) { return values.header; }
  __device__ static Header LoadHeader(const std::byte* tile, int hidden, int lane) {
    return reinterpret_cast<const uint2*>(tile + lane / 4 * NeuronBytes(hidden))[lane % 4];
  }
  __device__ static Bases BasesOf(const Header& header, int lane) {
    const uint32_t bases = __shfl_sync(0xffffffffu, header.x, lane / 4 * 4);
    return {Bf12BasePair(bases & 0xff), Bf12BasePair(bases >> 8 & 0xff)};
  }

  // `tile`: the tile's first neuron, of kNeurons; what stands for others repeats them, without
  // escapes. Columns at and beyond `hidden` read as zero.
  template <class Reader, int kNeurons = kTileNeurons>
  __device__ static void Load(const std::byte* tile, int hidden, int column, int lane,
                              GateUp* out) {
    LoadPiece<Reader, 0, kNeurons>(tile, hidden, column, lane, out);
    LoadPiece<Reader, 1, kNeurons>(tile, hidden, column, lane, out);
  }
  template <class Reader, int kNeurons = kTileNeurons>
  __device__ static void Load(const std::byte* tile, int hidden, int column, int lane, Down* out) {
    LoadPiece<Reader, 0, kNeurons>(tile, hidden, column, lane, out);
  }

  // One of the pieces that the products use one after the other: bytes of the first two groups of
  // 32 columns; then of the others, the nibbles and the header.
  template <class Reader, int kPiece, int kNeurons = kTileNeurons>
  __device__ static void LoadPiece(const std::byte* tile, int hidden, int column, int lane,
                                   GateUp* out) {
    const size_t stride = Reader::Stride(NeuronBytes(hidden), GateUpBytes(hidden));
    const std::byte* neuron = tile + lane / 4 % kNeurons * stride;
    ReadRows<Reader, kPiece>(neuron, hidden, column, lane, out);
    if (kPiece == 0) return;
    out->header = reinterpret_cast<const uint2*>(neuron)[lane % 4];
    constexpr uint32_t kBases = 0x00ffffff;
    if (lane / 4 >= kNeurons && lane % 4 == 0) out->header.x &= kBases;
  }
  // The same without the header.
  template <int kPiece>
  __device__ static void LoadRows(const std::byte* tile, int hidden, int column, int lane,
                                  GateUp* out) {
    ReadRows<ReadStreaming, kPiece>(tile + lane / 4 * NeuronBytes(hidden), hidden, column, lane,
                                    out);
  }
  template <class Reader, int kPiece, int kNeurons = kTileNeurons>
  __device__ static void LoadPiece(const std::byte* tile, int hidden, int column, int lane,
                                   Down* out) {
    const size_t stride = NeuronBytes(hidden);
    const std::byte* even = tile + 2 * (lane % 4) % kNeurons * stride + 2 * RowBytes(hidden) +
                            BlockOffset(column) + lane / 4 % 4 * 16;
    const int plane = lane / 16 * kBf12PlaneBytes;
    const bool inside = column < hidden;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    out->even[0] = inside ? Reader::Read(even + plane) : zero;
    out->even[1] = inside ? Reader::Read(even + 2 * kBf12PlaneBytes) : zero;
    out->odd[0] = inside ? Reader::Read(even + stride + plane) : zero;
    out->odd[1] = inside ? Reader::Read(even + stride + 2 * kBf12PlaneBytes) : zero;
  }

  // function(i, address, whether it is inside of the row) for each 16 bytes that a lane has of a
  // tile's down rows, and DownWord for its words, as MakeDown takes them.
  template <class Function>
  __device__ static void ForEachDownPiece(const std::byte* tile, int hidden, int column, int lane,
                                          const Function& function) {
    const size_t stride = NeuronBytes(hidden);
    const bool inside = column < hidden;
    const std::byte* even = tile + 2 * (lane % 4) * stride + 2 * RowBytes(hidden) +
                            BlockOffset(column) + lane / 4 % 4 * 16;
    const int plane = lane / 16 * kBf12PlaneBytes;
    function(0, inside ? even + plane : tile, inside);
    function(1, inside ? even + 2 * kBf12PlaneBytes : tile, inside);
    function(2, inside ? even + stride + plane : tile, inside);
    function(3, inside ? even + stride + 2 * kBf12PlaneBytes : tile, inside);
  }
  __device__ static const std::byte* DownWord(const std::byte* tile, int hidden, int lane, int i) {
    return tile + (2 * (lane % 4) + i) * NeuronBytes(hidden);
  }
  __device__ static Down MakeDown(const uint4 (&pieces)[4], const uint32_t* words) {
    return {{pieces[0], pieces[1]},
            {pieces[2], pieces[3]},
            {DownBase(words[0]), DownBase(words[1])}};
  }

  // The bases of the two neurons, from memory or from the headers of all eight.
  __device__ static void LoadBases(const std::byte* tile, int hidden, int lane, Down* out) {
    const std::byte* even = tile + 2 * (lane % 4) * NeuronBytes(hidden);
    out->bases[0] = DownBase(__ldg(reinterpret_cast<const uint32_t*>(even)));
    out->bases[1] = DownBase(__ldg(reinterpret_cast<const uint32_t*>(even + NeuronBytes(hidden))));
  }
  __device__ static void TakeBases(const Header& header, int lane, Down* out) {
    out->bases[0] = DownBase(__shfl_sync(0xffffffffu, header.x, lane % 4 * 8));
    out->bases[1] = DownBase(__shfl_sync(0xffffffffu, header.x, lane % 4 * 8 + 4));
  }

  // Writes what Load read to the same place of another blob, the header with the first columns.
  __device__ static void Store(const GateUp& values, int hidden, int column, int lane,
                               std::byte* tile) {
    if (column >= hidden) return;
    std::byte* neuron = tile + (lane / 4) * NeuronBytes(hidden);
    std::byte* gate = neuron + BlockOffset(column) + lane % 4 * 16;
    std::byte* up = gate + RowBytes(hidden);
#pragma unroll
    for (int plane = 0; plane < 3; ++plane) {
      *reinterpret_cast<uint4*>(gate + plane * kBf12PlaneBytes) = values.gate[plane];
      *reinterpret_cast<uint4*>(up + plane * kBf12PlaneBytes) = values.up[plane];
    }
    if (column == 0) reinterpret_cast<uint2*>(neuron)[lane % 4] = values.header;
  }

  __device__ static void Store(const Down& values, int hidden, int column, int lane,
                               std::byte* tile) {
    if (column >= hidden) return;
    const size_t stride = NeuronBytes(hidden);
    std::byte* even = tile + 2 * (lane % 4) * stride + 2 * RowBytes(hidden) + BlockOffset(column) +
                      lane / 4 % 4 * 16;
    const int plane = lane / 16 * kBf12PlaneBytes;
    *reinterpret_cast<uint4*>(even + plane) = values.even[0];
    *reinterpret_cast<uint4*>(even + stride + plane) = values.odd[0];
    if (lane >= 16) return;  // the other half has the same nibbles
    *reinterpret_cast<uint4*>(even + 2 * kBf12PlaneBytes) = values.even[1];
    *reinterpret_cast<uint4*>(even + stride + 2 * kBf12PlaneBytes) = values.odd[1];
  }

  // sums[16 = gate of 8 neurons then up, 8 tokens] += weights x tokens over the warp's columns.
  // `tokens`: this lane's token (g) at the warp's first column, shared memory. Calls
  // used(std::integral_constant) with each piece that may be loaded anew.
  template <class Used>
  __device__ static void MultiplyGateUp(const GateUp& weights, const __nv_bfloat16* tokens,
                                        int lane, float (&sums)[4], const Used& used) {
    MultiplyGateUp<1>(weights, BasesOf(weights.header, lane), tokens, 0, lane, &sums, used);
  }
  // The same for kTokenTiles times 8 tokens, `tile_stride` values apart.
  template <int kTokenTiles, class Used>
  __device__ static void MultiplyGateUp(const GateUp& weights, const Bases& bases,
                                        const __nv_bfloat16* tokens, int tile_stride, int lane,
                                        float (*sums)[4], const Used& used) {
    const __nv_bfloat16* own = tokens + lane % 4 * 8;
    MultiplyGroup<0, kTokenTiles>(weights, bases, own, tile_stride, sums);
    MultiplyGroup<1, kTokenTiles>(weights, bases, own, tile_stride, sums);
    used(std::integral_constant<int, 0>());
    MultiplyGroup<2, kTokenTiles>(weights, bases, own, tile_stride, sums);
    MultiplyGroup<3, kTokenTiles>(weights, bases, own, tile_stride, sums);
    used(std::integral_constant<int, 1>());
  }

  // out[128 columns, 8 tokens] += down x activations. `activations`: of token g, neurons 2t, 2t
  // + 1.
  template <class Used>
  __device__ static void MultiplyDown(const Down& weights, uint32_t activations, int lane,
                                      float (&out)[8][4], const Used& used) {
    MultiplyDown<1>(weights, &activations, lane, &out, used);
  }
  // The same for kTokenTiles times 8 tokens.
  template <int kTokenTiles, class Used>
  __device__ static void MultiplyDown(const Down& weights, const uint32_t* activations, int lane,
                                      float (*out)[8][4], const Used& used) {
    const uint32_t even_base = Bf12BasePair(weights.bases[0]);
    const uint32_t odd_base = Bf12BasePair(weights.bases[1]);
    // Plane 1 has nibbles 2 and 3: moved to where plane 0 has its own.
    const int shift = lane / 16 * 8;
    const auto* even = reinterpret_cast<const uint32_t*>(&weights.even[0]);
    const auto* odd = reinterpret_cast<const uint32_t*>(&weights.odd[0]);
    const auto* even_nibbles = reinterpret_cast<const uint32_t*>(&weights.even[1]);
    const auto* odd_nibbles = reinterpret_cast<const uint32_t*>(&weights.odd[1]);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const uint32_t e = even_nibbles[m] >> shift;
      const uint32_t o = odd_nibbles[m] >> shift;
      const uint32_t e0 = DecodeBf12Pair<0>(even[m], e, even_base);
      const uint32_t o0 = DecodeBf12Pair<0>(odd[m], o, odd_base);
      const uint32_t e1 = DecodeBf12Pair<1>(even[m], e, even_base);
      const uint32_t o1 = DecodeBf12Pair<1>(odd[m], o, odd_base);
      const uint32_t low0 = __byte_perm(e0, o0, 0x5410);
      const uint32_t high0 = __byte_perm(e0, o0, 0x7632);
      const uint32_t low1 = __byte_perm(e1, o1, 0x5410);
      const uint32_t high1 = __byte_perm(e1, o1, 0x7632);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        MmaK8(out[n][m], low0, high0, activations[n]);
        MmaK8(out[n][4 + m], low1, high1, activations[n]);
      }
    }
    used(std::integral_constant<int, 0>());
  }

  // The column, within the warp's 128, of element `r` of out[m].
  __device__ static int OutputColumn(int lane, int m, int r) {
    return lane / 16 * 64 + m / 4 * 32 + lane / 4 % 4 * 8 + 2 * (m % 4) + r / 2;
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

  // Of a row's block of the columns from `column` on, behind the header.
  __device__ static size_t BlockOffset(int column) {
    return sizeof(Bf12Header) + size_t(column / kBf12PairBlockValues) * kBf12PairBlockBytes;
  }
  __device__ static uint32_t DownBase(uint32_t word) { return word >> 16 & 0xff; }

  template <class Reader, int kPiece>
  __device__ static void ReadRows(const std::byte* neuron, int hidden, int column, int lane,
                                  GateUp* out) {
    const std::byte* gate = neuron + BlockOffset(column) + lane % 4 * 16;
    const std::byte* up = gate + RowBytes(hidden);
    const bool inside = column < hidden;
#pragma unroll
    for (int plane = kPiece; plane < 1 + 2 * kPiece; ++plane) {
      const int offset = plane * kBf12PlaneBytes;
      out->gate[plane] = inside ? Reader::Read(gate + offset) : make_uint4(0, 0, 0, 0);
      out->up[plane] = inside ? Reader::Read(up + offset) : make_uint4(0, 0, 0, 0);
    }
  }

  template <int kGroup, int kTokenTiles>
  __device__ static void MultiplyGroup(const GateUp& weights, const Bases& bases,
                                       const __nv_bfloat16* tokens, int tile_stride,
                                       float (*sums)[4]) {
    const auto* gate = reinterpret_cast<const uint32_t*>(&weights.gate[kGroup / 2]);
    const auto* up = reinterpret_cast<const uint32_t*>(&weights.up[kGroup / 2]);
    const auto* gate_nibbles = reinterpret_cast<const uint32_t*>(&weights.gate[2]);
    const auto* up_nibbles = reinterpret_cast<const uint32_t*>(&weights.up[2]);
    uint32_t g[4];
    uint32_t u[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      g[i] = DecodeBf12Pair<kGroup>(gate[i], gate_nibbles[i], bases.gate);
      u[i] = DecodeBf12Pair<kGroup>(up[i], up_nibbles[i], bases.up);
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const uint4 b = *reinterpret_cast<const uint4*>(tokens + n * tile_stride + kGroup * 32);
      MmaK16(sums[n], g[0], u[0], g[1], u[1], b.x, b.y);
      MmaK16(sums[n], g[2], u[2], g[3], u[3], b.z, b.w);
    }
  }
};

}  // namespace moed::backend
