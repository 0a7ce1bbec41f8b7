// cuBLAS, loaded when the CUDA backend is created instead of with the program: a machine that
// serves on the CPU then needs no CUDA library, and its 100 KB of thread-local storage do not weigh
// on the small stacks of other libraries' threads, which could not start. Owned by the CUDA
// backend; engine thread.
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/cuda/device/workspace.h"

namespace moed::backend {

// c [m, n] = op(a) b + beta c, column-major as cuBLAS has it: op(a) is [m, k], b [k, n], both of
// type T.
template <typename T>
struct MatrixProduct {
  bool transpose_a = false;
  int m = 0;
  int n = 0;
  int k = 0;
  const T* a = nullptr;
  int a_stride = 0;
  const T* b = nullptr;
  int b_stride = 0;
  float beta = 0.0f;
  float* c = nullptr;
  int c_stride = 0;
};

// The same product `count` times, with other a and c each time: as many elements on from the last.
struct ProductBatch {
  int count = 1;
  int64_t a_step = 0;
  int64_t c_step = 0;
};

class Cublas {
 public:
  // UNAVAILABLE if the loader finds no cuBLAS 13. Products run on `stream`, in a workspace of
  // their own, so that they can be captured in graphs.
  static absl::StatusOr<std::unique_ptr<Cublas>> Create(cudaStream_t stream);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  absl::Status Multiply(const MatrixProduct<__nv_bfloat16>& product, std::string_view what) const;
  // In one launch.
  absl::Status Multiply(const MatrixProduct<__nv_bfloat16>& product, const ProductBatch& batch,
                        std::string_view what) const;
  // In float32 throughout.
  absl::Status Multiply(const MatrixProduct<float>& product, std::string_view what) const;

 private:
  Cublas() = default;
  absl::Status Load();
  absl::Status Check(cublasStatus_t status, std::string_view what) const;
  template <typename T>
  absl::Status MultiplyAs(cudaDataType type, const MatrixProduct<T>& p,
                          std::string_view what) const;

  decltype(&cublasCreate) create_ = nullptr;
  decltype(&cublasDestroy) destroy_ = nullptr;
  decltype(&cublasSetStream) set_stream_ = nullptr;
  decltype(&cublasSetWorkspace) set_workspace_ = nullptr;
  decltype(&cublasGetStatusString) status_string_ = nullptr;
  cublasStatus_t (*gemm_)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                          const void*, const void*, cudaDataType, int, const void*, cudaDataType,
                          int, const void*, void*, cudaDataType, int, cublasComputeType_t,
                          cublasGemmAlgo_t) = nullptr;
  cublasStatus_t (*gemm_batch_)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                const void*, const void*, cudaDataType, int, long long, const void*,
                                cudaDataType, int, long long, const void*, void*, cudaDataType, int,
                                long long, int, cublasComputeType_t, cublasGemmAlgo_t) = nullptr;
  cublasHandle_t handle_ = nullptr;
  Workspace workspace_{WorkspaceMemory::kDevice};
};

}  // namespace moed::backend
