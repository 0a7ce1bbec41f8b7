// How a format reads weights (bf16_experts.cuh, bf12_experts.cuh): from VRAM or over the link, or
// from shared memory, where whole neurons or their gate and up rows alone were put.
#pragma once

#include <cstddef>

#include <cuda_bf16.h>

#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

struct ReadStreaming {
  __device__ __forceinline__ static uint4 Read(const void* address) {
    return LoadStreaming(address);
  }
  // Between neurons, of which all bytes and those of gate and up with the header are given.
  __host__ __device__ static size_t Stride(size_t neuron_bytes, size_t) { return neuron_bytes; }
};

// Whole neurons, as they lie in a blob.
struct ReadShared {
  __device__ __forceinline__ static uint4 Read(const void* address) {
    return *static_cast<const uint4*>(address);
  }
  __host__ __device__ static size_t Stride(size_t neuron_bytes, size_t) { return neuron_bytes; }
};

// Gate and up rows alone, an odd number of 64 bytes apart, so that the 16-byte loads of two
// neurons that are answered together lie in different banks.
struct ReadStaged {
  __device__ __forceinline__ static uint4 Read(const void* address) {
    return *static_cast<const uint4*>(address);
  }
  __host__ __device__ static size_t Stride(size_t, size_t gate_up_bytes) {
    return (gate_up_bytes + 63) / 64 / 2 * 128 + 64;
  }
};

// A lane's fragments of the tokens in shared memory: 16 bytes of each 32 columns.
struct TokenPieces {
  const __nv_bfloat16* own;
  int tile_stride;  // from eight tokens to the next, in values

  __device__ __forceinline__ uint4 operator()(int tile, int piece) const {
    return *reinterpret_cast<const uint4*>(own + tile * tile_stride + piece * 32);
  }
};

}  // namespace moed::backend
