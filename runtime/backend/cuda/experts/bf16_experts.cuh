// The bf16 expert blob as tensor-core fragments: a neuron is [gate | up | down], hidden values
// each, and a lane's 16-byte loads are its fragments as they stand, because k is permuted alike on
// the weight and the token side. A format is a struct with these members; kernels take it as a
// template parameter.
//
// Within a tile of 8 neurons and a warp's 128 columns, lane = 4 g + t:
//   gate and up: neuron g, columns c * 32 + t * 8 .. + 7 for c = 0..3
//   down:        neurons 2t and 2t + 1, columns h * 64 + g * 8 .. + 7 for h = 0, 1
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/backend/cuda/experts/weight_readers.cuh"
#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

struct Bf16Experts {
  static constexpr ExpertFormatKind kKind = ExpertFormatKind::kBF16;
  static constexpr int kStagedTiles = 2;      // gate_up_sources.cuh
  static constexpr int kStagedDownTiles = 0;  // beside these shared memory has no room
  static constexpr bool kHasEscapes = false;
  static constexpr int kHeaderBytes = 0;
  struct Header {};  // of the lane's neurons: nothing
  struct Bases {};

  struct GateUp {
    uint4 gate[4];
    uint4 up[4];
  };
  struct Down {
    uint4 even[2];  // neuron 2t
    uint4 odd[2];   // neuron 2t + 1
  };

  __host__ __device__ static int RowValues(int hidden) { return (hidden + 31) / 32 * 32; }
  __host__ __device__ static size_t NeuronBytes(int hidden) {
    return size_t{6} * RowValues(hidden);
  }
  // Of the gate and up rows.
  __host__ __device__ static size_t GateUpBytes(int hidden) {
    return size_t{4} * RowValues(hidden);
  }
  // Where tile `tile` of 8 neurons begins.
  __device__ static size_t TileOffset(int tile, int hidden, int) {
    return size_t(tile) * kTileNeurons * NeuronBytes(hidden);
  }

  __device__ static Header HeaderOf(const GateUp&) { return {}; }
  __device__ static Header LoadHeader(const std::byte*, int, int) { return {}; }
  __device__ static Bases BasesOf(const Header&, int) { return {}; }
  __device__ static void LoadBases(const std::byte*, int, int, Down*) {}
  __device__ static void TakeBases(const Header&, int, Down*) {}
  __device__ static void TakeBases(const std::byte*, int, Down*) {}
  __device__ static Bases ReadBases(const std::byte*) { return {}; }
  __device__ static Header ReadHeader(const std::byte*, int) { return {}; }
  __device__ static void StoreHeader(const Header&, int, uint32_t (&)[kTileNeurons][8]) {}

  // `tile`: the tile's first neuron, of kNeurons; what stands for others repeats them. Columns at
  // and beyond `hidden` read as zero.
  template <class Reader, int kNeurons = kTileNeurons>
  __device__ static void Load(const std::byte* tile, int hidden, int column, int lane,
                              GateUp* out) {
    LoadPiece<Reader, 0, kNeurons>(tile, hidden, column, lane, out);
    LoadPiece<Reader, 1, kNeurons>(tile, hidden, column, lane, out);
    LoadPiece<Reader, 2, kNeurons>(tile, hidden, column, lane, out);
    LoadPiece<Reader, 3, kNeurons>(tile, hidden, column, lane, out);
  }
  template <class Reader, int kNeurons = kTileNeurons>
  __device__ static void Load(const std::byte* tile, int hidden, int column, int lane, Down* out) {
    LoadPiece<Reader, 0, kNeurons>(tile, hidden, column, lane, out);
    LoadPiece<Reader, 1, kNeurons>(tile, hidden, column, lane, out);
  }

  // One of the pieces that the products use one after the other.
  template <class Reader, int kPiece, int kNeurons = kTileNeurons>
  __device__ static void LoadPiece(const std::byte* tile, int hidden, int column, int lane,
                                   GateUp* out) {
    const size_t stride = Reader::Stride(NeuronBytes(hidden), GateUpBytes(hidden));
    const std::byte* neuron = tile + lane / 4 % kNeurons * stride;
    const int first = column + kPiece * 32 + lane % 4 * 8;
    const bool inside = first < hidden;
    const std::byte* up = neuron + 2 * (RowValues(hidden) + first);
    out->gate[kPiece] = inside ? Reader::Read(neuron + 2 * first) : make_uint4(0, 0, 0, 0);
    out->up[kPiece] = inside ? Reader::Read(up) : make_uint4(0, 0, 0, 0);
  }
  // The same without the header.
  template <int kPiece>
  __device__ static void LoadRows(const std::byte* tile, int hidden, int column, int lane,
                                  GateUp* out) {
    LoadPiece<ReadStreaming, kPiece>(tile, hidden, column, lane, out);
  }
  template <class Reader, int kPiece, int kNeurons = kTileNeurons>
  __device__ static void LoadPiece(const std::byte* tile, int hidden, int column, int lane,
                                   Down* out) {
    const size_t stride = NeuronBytes(hidden);
    const std::byte* even = tile + 2 * (lane % 4) % kNeurons * stride + 4 * RowValues(hidden);
    const int first = column + kPiece * 64 + lane / 4 * 8;
    const bool inside = first < hidden;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    out->even[kPiece] = inside ? Reader::Read(even + 2 * first) : zero;
    out->odd[kPiece] = inside ? Reader::Read(even + stride + 2 * first) : zero;
  }

  // Bytes of so many columns of a row.
  __host__ __device__ static constexpr int ColumnBytes(int columns) { return 2 * columns; }
  // Where row `part` of a neuron begins in it.
  __device__ static size_t RowOffset(int part, int hidden) {
    return size_t{2} * part * RowValues(hidden);
  }
  // From shared memory: a warp's 128 columns of the lane's gate row, from `gate` on, and, `to_up`
  // further on, of its up row; `columns`: how many of them are inside of the row.
  __device__ static void ReadGateUp(const std::byte* gate, int to_up, int columns, int lane,
                                    GateUp* out) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int first = c * 32 + lane % 4 * 8;
      const bool inside = first < columns;
      out->gate[c] = inside ? ReadShared::Read(gate + 2 * first) : make_uint4(0, 0, 0, 0);
      out->up[c] = inside ? ReadShared::Read(gate + to_up + 2 * first) : make_uint4(0, 0, 0, 0);
    }
  }
  // The same of a tile's down rows, `stride` apart, of which `rows` is the first; `bases`: of the
  // eight rows.
  __device__ static void ReadDown(const std::byte* rows, int stride, int columns, int lane,
                                  const std::byte*, Down* out) {
    const std::byte* const even = rows + 2 * (lane % 4) * stride;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = h * 64 + lane / 4 * 8;
      const bool inside = first < columns;
      out->even[h] = inside ? ReadShared::Read(even + 2 * first) : make_uint4(0, 0, 0, 0);
      out->odd[h] = inside ? ReadShared::Read(even + stride + 2 * first) : make_uint4(0, 0, 0, 0);
    }
  }

  // Writes what Load read to the same place of another blob; columns beyond `hidden` are left.
  __device__ static void Store(const GateUp& values, int hidden, int column, int lane,
                               std::byte* tile) {
    std::byte* neuron = tile + (lane / 4) * NeuronBytes(hidden);
    const int row = RowValues(hidden);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int first = column + c * 32 + lane % 4 * 8;
      if (first >= hidden) continue;
      *reinterpret_cast<uint4*>(neuron + 2 * first) = values.gate[c];
      *reinterpret_cast<uint4*>(neuron + 2 * (row + first)) = values.up[c];
    }
  }

  __device__ static void Store(const Down& values, int hidden, int column, int lane,
                               std::byte* tile) {
    const size_t stride = NeuronBytes(hidden);
    std::byte* even = tile + 2 * (lane % 4) * stride + 4 * RowValues(hidden);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = column + h * 64 + lane / 4 * 8;
      if (first >= hidden) continue;
      *reinterpret_cast<uint4*>(even + 2 * first) = values.even[h];
      *reinterpret_cast<uint4*>(even + stride + 2 * first) = values.odd[h];
    }
  }

  // sums[16 = gate of 8 neurons then up, 8 tokens] += weights x tokens over the warp's columns.
  // `tokens`: this lane's token (g) at the warp's first column, shared memory. Calls
  // used(std::integral_constant) with each piece that may be loaded anew.
  template <class Used>
  __device__ static void MultiplyGateUp(const GateUp& weights, const __nv_bfloat16* tokens,
                                        int lane, float (&sums)[4], const Used& used) {
    MultiplyGateUp<1>(weights, Bases(), TokenPieces{tokens + lane % 4 * 8, 0}, &sums, used);
  }
  // The same for kTokenTiles times 8 tokens; `tokens`(tile, piece): the lane's 16 bytes.
  template <int kTokenTiles, class Tokens, class Used>
  __device__ static void MultiplyGateUp(const GateUp& weights, const Bases&, const Tokens& tokens,
                                        float (*sums)[4], const Used& used) {
    MultiplyPiece<0, kTokenTiles>(weights, tokens, sums, used);
    MultiplyPiece<1, kTokenTiles>(weights, tokens, sums, used);
    MultiplyPiece<2, kTokenTiles>(weights, tokens, sums, used);
    MultiplyPiece<3, kTokenTiles>(weights, tokens, sums, used);
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
  __device__ static void MultiplyDown(const Down& weights, const uint32_t* activations, int,
                                      float (*out)[8][4], const Used& used) {
    MultiplyPiece<0, kTokenTiles>(weights, activations, out, used);
    MultiplyPiece<1, kTokenTiles>(weights, activations, out, used);
  }

  // The column, within the warp's 128, of element `r` of out[m].
  __device__ static int OutputColumn(int lane, int m, int r) {
    return m / 4 * 64 + lane / 4 * 8 + 2 * (m % 4) + r / 2;
  }

 private:
  template <int kPiece, int kTokenTiles, class Tokens, class Used>
  __device__ static void MultiplyPiece(const GateUp& weights, const Tokens& tokens,
                                       float (*sums)[4], const Used& used) {
    const uint4& gate = weights.gate[kPiece];
    const uint4& up = weights.up[kPiece];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const uint4 b = tokens(n, kPiece);
      MmaK16(sums[n], gate.x, up.x, gate.y, up.y, b.x, b.y);
      MmaK16(sums[n], gate.z, up.z, gate.w, up.w, b.z, b.w);
    }
    used(std::integral_constant<int, kPiece>());
  }

  template <int kPiece, int kTokenTiles, class Used>
  __device__ static void MultiplyPiece(const Down& weights, const uint32_t* activations,
                                       float (*out)[8][4], const Used& used) {
    const auto* even = reinterpret_cast<const uint32_t*>(&weights.even[kPiece]);
    const auto* odd = reinterpret_cast<const uint32_t*>(&weights.odd[kPiece]);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = __byte_perm(even[m], odd[m], 0x5410);
      const uint32_t high = __byte_perm(even[m], odd[m], 0x7632);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        MmaK8(out[n][kPiece * 4 + m], low, high, activations[n]);
      }
    }
    used(std::integral_constant<int, kPiece>());
  }
};

}  // namespace moed::backend
