// bf16 experts in device memory as one tensor, of which Hopper's copy engine brings boxes into
// shared memory. Made by the host for each list of experts.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <optional>
#include <span>

#include "runtime/backend/expert_format.h"

namespace moed::backend {

// A box: columns of one part of some neurons of an expert, 128 bytes a neuron, swizzled as
// warpgroup.cuh has it.
inline constexpr int kBlobBoxColumns = 64;
inline constexpr int kBlobBoxNeurons = 64;

struct BlobTensor {
  CUtensorMap map;  // [experts][neurons][gate, up, down][hidden]
  const std::byte* first = nullptr;
  size_t stride = 0;  // bytes; expert i of the tensor lies i times that behind the first
};

// Experts of format `bf16`. Empty if there are none, or if the driver does not take them as a
// tensor.
std::optional<BlobTensor> DescribeBlobs(const ExpertFormat& bf16,
                                        std::span<const std::byte* const> blobs);

}  // namespace moed::backend
