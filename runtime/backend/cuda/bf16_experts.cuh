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

#include "runtime/backend/cuda/expert_tasks.h"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {

struct Bf16Experts {
  static constexpr bool kHasEscapes = false;
  struct Header {};  // of the lane's neurons: nothing

  struct GateUp {
    uint4 gate[4];
    uint4 up[4];
  };
  struct Down {
    uint4 even[2];  // neuron 2t
    uint4 odd[2];   // neuron 2t + 1
  };

  __host__ __device__ static int RowValues(int hidden) { return (hidden + 31) / 32 * 32; }
  __host__ __device__ static size_t NeuronBytes(int hidden) { return size_t{6} * RowValues(hidden); }
  // Where tile `tile` of 8 neurons begins.
  __device__ static size_t TileOffset(int tile, int hidden, int) {
    return size_t(tile) * kTileNeurons * NeuronBytes(hidden);
  }

  __device__ static Header HeaderOf(const GateUp&) { return {}; }
  __device__ static void LoadBases(const std::byte*, int, int, Down*) {}
  __device__ static void TakeBases(const Header&, int, Down*) {}

  // `tile`: the tile's first neuron. Columns at and beyond `hidden` read as zero.
  template <class Reader>
  __device__ static void Load(const std::byte* tile, int hidden, int column, int lane,
                              GateUp* out) {
    const std::byte* neuron = tile + (lane / 4) * NeuronBytes(hidden);
    const int row = RowValues(hidden);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int first = column + c * 32 + lane % 4 * 8;
      const bool inside = first < hidden;
      out->gate[c] = inside ? Reader::Read(neuron + 2 * first) : make_uint4(0, 0, 0, 0);
      out->up[c] = inside ? Reader::Read(neuron + 2 * (row + first)) : make_uint4(0, 0, 0, 0);
    }
  }

  template <class Reader>
  __device__ static void Load(const std::byte* tile, int hidden, int column, int lane, Down* out) {
    const size_t stride = NeuronBytes(hidden);
    const std::byte* even = tile + 2 * (lane % 4) * stride + 4 * RowValues(hidden);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = column + h * 64 + lane / 4 * 8;
      const bool inside = first < hidden;
      out->even[h] = inside ? Reader::Read(even + 2 * first) : make_uint4(0, 0, 0, 0);
      out->odd[h] = inside ? Reader::Read(even + stride + 2 * first) : make_uint4(0, 0, 0, 0);
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
  // `tokens`: this lane's token (g) at the warp's first column, shared memory.
  __device__ static void MultiplyGateUp(const GateUp& weights, const __nv_bfloat16* tokens,
                                        int lane, float (&sums)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint4 b = *reinterpret_cast<const uint4*>(tokens + c * 32 + lane % 4 * 8);
      MmaK16(sums, weights.gate[c].x, weights.up[c].x, weights.gate[c].y, weights.up[c].y, b.x,
             b.y);
      MmaK16(sums, weights.gate[c].z, weights.up[c].z, weights.gate[c].w, weights.up[c].w, b.z,
             b.w);
    }
  }

  // out[128 columns, 8 tokens] += down x activations. `activations`: of token g, neurons 2t, 2t
  // + 1.
  __device__ static void MultiplyDown(const Down& weights, uint32_t activations, int,
                                      float (&out)[8][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t* even = reinterpret_cast<const uint32_t*>(&weights.even[h]);
      const uint32_t* odd = reinterpret_cast<const uint32_t*>(&weights.odd[h]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        MmaK8(out[h * 4 + m], __byte_perm(even[m], odd[m], 0x5410),
              __byte_perm(even[m], odd[m], 0x7632), activations);
      }
    }
  }

  // The column, within the warp's 128, of element `r` of out[m].
  __device__ static int OutputColumn(int lane, int m, int r) {
    return m / 4 * 64 + lane / 4 * 8 + 2 * (m % 4) + r / 2;
  }
};

}  // namespace moed::backend
