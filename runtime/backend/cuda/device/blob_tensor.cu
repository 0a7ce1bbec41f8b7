#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

#include "runtime/backend/cuda/device/blob_tensor.h"

namespace moed::backend {
namespace {

// The driver's function, which is not linked; null if it has none.
decltype(&cuTensorMapEncodeTiled) FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

std::optional<BlobTensor> DescribeBlobs(const ExpertFormat& bf16,
                                        std::span<const std::byte* const> blobs) {
  static const auto encode = FindEncoder();
  if (encode == nullptr || blobs.empty()) return std::nullopt;
  const auto [first, last] = std::minmax_element(blobs.begin(), blobs.end());
  const cuuint64_t row_bytes = bf16.row_values() * sizeof(__nv_bfloat16);
  BlobTensor tensor = {.map = {}, .first = *first, .stride = 0};
  for (const std::byte* blob : blobs) {
    tensor.stride = std::gcd(tensor.stride, static_cast<size_t>(blob - *first));
  }
  if (tensor.stride == 0) tensor.stride = bf16.blob_bytes();
  const cuuint64_t count = cuuint64_t(*last - *first) / tensor.stride + 1;
  if (count > std::numeric_limits<int32_t>::max()) return std::nullopt;  // kernels count in int
  const cuuint64_t sizes[] = {cuuint64_t(bf16.hidden()), 3, cuuint64_t(bf16.intermediate()), count};
  const cuuint64_t strides[] = {row_bytes, row_bytes * 3, tensor.stride};
  const cuuint32_t box[] = {kBlobBoxColumns, 1, kBlobBoxNeurons, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result =
      encode(&tensor.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<std::byte*>(*first),
             sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return std::nullopt;
  return tensor;
}

}  // namespace moed::backend
