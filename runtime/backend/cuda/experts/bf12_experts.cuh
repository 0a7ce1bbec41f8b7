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
#include "runtime/backend/cuda/experts/bf12_decode.cuh"
#include "runtime/backend/cuda/experts/bf12_escapes.cuh"
#include "runtime/backend/cuda/experts/weight_readers.cuh"
#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

struct Bf12Experts : Bf12Escapes {
  static constexpr ExpertFormatKind kKind = ExpertFormatKind::kBF12;
  // Tiles in shared memory: gate_up_sources.cuh, down_sources.cuh.
  static constexpr int kStagedTiles = 2;
  static constexpr int kStagedDownTiles = 3;
  static constexpr bool kHasEscapes = true;
  static constexpr int kHeaderBytes = sizeof(Bf12Header);
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
    uint4 even[2];   // neuron 2t: bytes, nibbles
    uint4 odd[2];    // neuron 2t + 1
    uint32_t bases;  // of the two, where exponents stand
  };

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

  // Bytes of so many columns of a row; a multiple of 128.
  __host__ __device__ static constexpr int ColumnBytes(int columns) { return columns / 2 * 3; }
  // Where row `part` of a neuron begins in it.
  __device__ static size_t RowOffset(int part, int hidden) {
    return sizeof(Bf12Header) + part * RowBytes(hidden);
  }
  // From shared memory: a warp's 128 columns of the lane's gate row, from `gate` on, and, `to_up`
  // further on, of its up row; `columns`: how many of them are inside of the row.
  __device__ static void ReadGateUp(const std::byte* gate, int to_up, int columns, int lane,
                                    GateUp* out) {
#pragma unroll
    for (int plane = 0; plane < 3; ++plane) {
      const std::byte* const at = gate + plane * kBf12PlaneBytes + lane % 4 * 16;
      out->gate[plane] = columns > 0 ? ReadShared::Read(at) : make_uint4(0, 0, 0, 0);
      out->up[plane] = columns > 0 ? ReadShared::Read(at + to_up) : make_uint4(0, 0, 0, 0);
    }
  }
  // The same of a tile's down rows, `stride` apart, of which `rows` is the first; `bases`: of the
  // eight rows.
  __device__ static void ReadDown(const std::byte* rows, int stride, int columns, int lane,
                                  const std::byte* bases, Down* out) {
    const std::byte* const even = rows + 2 * (lane % 4) * stride + lane / 4 % 4 * 16;
    const int plane = lane / 16 * kBf12PlaneBytes;
    const bool inside = columns > 0;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    out->even[0] = inside ? ReadShared::Read(even + plane) : zero;
    out->even[1] = inside ? ReadShared::Read(even + 2 * kBf12PlaneBytes) : zero;
    out->odd[0] = inside ? ReadShared::Read(even + stride + plane) : zero;
    out->odd[1] = inside ? ReadShared::Read(even + stride + 2 * kBf12PlaneBytes) : zero;
    TakeBases(bases, lane, out);
  }

  // The bases of the two neurons: from memory, from the headers of all eight, from all eight.
  __device__ static void LoadBases(const std::byte* tile, int hidden, int lane, Down* out) {
    const std::byte* even = tile + 2 * (lane % 4) * NeuronBytes(hidden);
    const std::byte* odd = even + NeuronBytes(hidden);
    out->bases = DownBases(DownBase(__ldg(reinterpret_cast<const uint32_t*>(even))),
                           DownBase(__ldg(reinterpret_cast<const uint32_t*>(odd))));
  }
  __device__ static void TakeBases(const Header& header, int lane, Down* out) {
    out->bases = DownBases(DownBase(__shfl_sync(0xffffffffu, header.x, lane % 4 * 8)),
                           DownBase(__shfl_sync(0xffffffffu, header.x, lane % 4 * 8 + 4)));
  }
  __device__ static void TakeBases(const std::byte* bases, int lane, Down* out) {
    const uint32_t pair = reinterpret_cast<const uint16_t*>(bases)[lane % 4];
    out->bases = DownBases(pair & 0xff, pair >> 8);
  }

  // Of a neuron in shared memory.
  __device__ static Bases ReadBases(const std::byte* neuron) {
    const uint32_t bases = *reinterpret_cast<const uint32_t*>(neuron);
    return {Bf12BasePair(bases & 0xff), Bf12BasePair(bases >> 8 & 0xff)};
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
    MultiplyGateUp<1>(weights, BasesOf(weights.header, lane), TokenPieces{tokens + lane % 4 * 8, 0},
                      &sums, used);
  }
  // The same for kTokenTiles times 8 tokens; `tokens`(tile, group): the lane's 16 bytes.
  template <int kTokenTiles, class Tokens, class Used>
  __device__ static void MultiplyGateUp(const GateUp& weights, const Bases& bases,
                                        const Tokens& tokens, float (*sums)[4], const Used& used) {
    MultiplyGroup<0, kTokenTiles>(weights, bases, tokens, sums);
    MultiplyGroup<1, kTokenTiles>(weights, bases, tokens, sums);
    used(std::integral_constant<int, 0>());
    MultiplyGroup<2, kTokenTiles>(weights, bases, tokens, sums);
    MultiplyGroup<3, kTokenTiles>(weights, bases, tokens, sums);
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
    const auto* even = reinterpret_cast<const uint32_t*>(&weights.even[0]);
    const auto* odd = reinterpret_cast<const uint32_t*>(&weights.odd[0]);
    const auto* even_nibbles = reinterpret_cast<const uint32_t*>(&weights.even[1]);
    const auto* odd_nibbles = reinterpret_cast<const uint32_t*>(&weights.odd[1]);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const Bf12ColumnPairs pairs = PermuteBf12Columns(even[m], odd[m], even_nibbles[m],
                                                       odd_nibbles[m], lane / 16, weights.bases);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        MmaK8(out[n][m], pairs.first[0], pairs.second[0], activations[n]);
        MmaK8(out[n][4 + m], pairs.first[1], pairs.second[1], activations[n]);
      }
    }
    used(std::integral_constant<int, 0>());
  }

  // The column, within the warp's 128, of element `r` of out[m].
  __device__ static int OutputColumn(int lane, int m, int r) {
    return lane / 16 * 64 + m / 4 * 32 + lane / 4 % 4 * 8 + 2 * (m % 4) + r / 2;
  }

 private:
  // Of a row's block of the columns from `column` on, behind the header.
  __device__ static size_t BlockOffset(int column) {
    return sizeof(Bf12Header) + size_t(column / kBf12PairBlockValues) * kBf12PairBlockBytes;
  }
  __device__ static uint32_t DownBase(uint32_t word) { return word >> 16 & 0xff; }
  __device__ static uint32_t DownBases(uint32_t even, uint32_t odd) {
    return even << 7 | odd << 23;
  }

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

  template <int kGroup, int kTokenTiles, class Tokens>
  __device__ static void MultiplyGroup(const GateUp& weights, const Bases& bases,
                                       const Tokens& tokens, float (*sums)[4]) {
    const auto* gate = reinterpret_cast<const uint32_t*>(&weights.gate[kGroup / 2]);
    const auto* up = reinterpret_cast<const uint32_t*>(&weights.up[kGroup / 2]);
    const auto* gate_nibbles = reinterpret_cast<const uint32_t*>(&weights.gate[2]);
    const auto* up_nibbles = reinterpret_cast<const uint32_t*>(&weights.up[2]);
    uint32_t g[4];
    uint32_t u[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kTokenTiles < kMostJoinedTasks) {
        g[i] = PermuteBf12Pair<kGroup>(gate[i], gate_nibbles[i], bases.gate);
        u[i] = PermuteBf12Pair<kGroup>(up[i], up_nibbles[i], bases.up);
      } else {  // too few registers for the masked nibbles that groups share
        g[i] = DecodeBf12Pair<kGroup>(gate[i], gate_nibbles[i], bases.gate);
        u[i] = DecodeBf12Pair<kGroup>(up[i], up_nibbles[i], bases.up);
      }
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const uint4 b = tokens(n, kGroup);
      MmaK16(sums[n], g[0], u[0], g[1], u[1], b.x, b.y);
      MmaK16(sums[n], g[2], u[2], g[3], u[3], b.z, b.w);
    }
  }
};

}  // namespace moed::backend
