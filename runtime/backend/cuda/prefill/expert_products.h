// Experts for many rows (prefill): tensor-core matrix products of a list of experts in one launch
// each for gate and up, and for down, straight from neuron-major blobs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moed::backend {

// Rows that a block multiplies with an expert.
struct ExpertProductTile {
  const std::byte* blob = nullptr;
  int32_t first_row = 0;  // of ExpertProductsArguments::rows
  int32_t num_rows = 0;
};

// The most rows of a tile that LaunchExpertProducts takes.
inline constexpr int kProductRows = 128;

// Cuts rows [first_row, first_row + num_rows) of an expert into tiles of at most `most_rows`: as
// few as can be, of sizes as even as can be.
void AddProductTiles(int most_rows, const std::byte* blob, int32_t first_row, int32_t num_rows,
                     std::vector<ExpertProductTile>* tiles);

struct ExpertProductsArguments {
  const ExpertProductTile* tiles = nullptr;  // [num_tiles], device memory
  int num_tiles = 0;
  const int32_t* rows = nullptr;         // [total rows]: of the output; of x it is row / top_k
  const __nv_bfloat16* x = nullptr;      // [T, hidden]
  __nv_bfloat16* activations = nullptr;  // [total rows, intermediate], scratch
  float* out = nullptr;                  // [T * top_k, hidden]
  int top_k = 0;
  int hidden = 0;        // a multiple of 8
  int intermediate = 0;  // a multiple of 8
  int row_values = 0;    // of a row in the blobs, padding included
};

// out[row] = expert(x[row / top_k]) for every row of every tile. Two launches.
cudaError_t LaunchExpertProducts(const ExpertProductsArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
