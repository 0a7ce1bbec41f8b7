// The products of expert_products.h by Hopper's warpgroup instructions, in builds that have code
// for compute capability 9.0a, on devices that take it. Elsewhere expert_products.cu multiplies.
#pragma once

#include "runtime/backend/cuda/device/blob_tensor.h"
#include "runtime/backend/cuda/prefill/expert_products.h"

namespace moed::backend {

// The most rows of a tile that LaunchWarpgroupProducts takes.
inline constexpr int kWarpgroupProductRows = 160;
// Outputs of a block, and how far a stage goes along what is summed over.
inline constexpr int kWarpgroupBlockOutputs = 256;
inline constexpr int kWarpgroupDepth = 64;

// False if the current device, or this build, has no such products. Once, before the first launch.
bool PrepareWarpgroupProducts();

// As LaunchExpertProducts, of tiles of at most kWarpgroupProductRows; their blobs are among those
// of `blobs`.
cudaError_t LaunchWarpgroupProducts(const ExpertProductsArguments& arguments,
                                    const BlobTensor& blobs, int multiprocessors,
                                    cudaStream_t stream);

}  // namespace moed::backend
