// What the CUDA backend uses of cuBLAS, in the plainest of kernels, for tests under
// compute-sanitizer: racecheck ends with an error of its own in a process that runs cuBLAS. The
// loader takes it for cuBLAS where its folder comes first in LD_LIBRARY_PATH.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 128;

struct Context {
  cudaStream_t stream = nullptr;
};

// c [m, n] = op(a) b + beta c, column-major; `count` times, with a and c so many elements further.
struct Product {
  bool transpose_a;
  int m, n, k;
  const void* a;
  int a_stride;
  int64_t a_step;
  const void* b;
  int b_stride;
  float beta;
  float* c;
  int c_stride;
  int64_t c_step;
  int count;
};

// A thread to an element.
template <class T>
__global__ void MultiplyPlainly(Product p) {
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= int64_t(p.m) * p.n) return;
  const int64_t row = element % p.m;
  const int64_t column = element / p.m;
  const T* a = static_cast<const T*>(p.a) + blockIdx.y * p.a_step;
  const T* b = static_cast<const T*>(p.b) + column * p.b_stride;
  float sum = 0.0f;
  for (int64_t i = 0; i < p.k; ++i) {
    sum += float(p.transpose_a ? a[i + row * p.a_stride] : a[row + i * p.a_stride]) * float(b[i]);
  }
  float* const c = p.c + blockIdx.y * p.c_step + row + column * p.c_stride;
  *c = p.beta == 0.0f ? sum : sum + p.beta * *c;
}

cublasStatus_t Launch(cublasHandle_t handle, cudaDataType type, const Product& p) {
  const cudaStream_t stream = reinterpret_cast<Context*>(handle)->stream;
  const dim3 grid(unsigned((int64_t(p.m) * p.n + kThreads - 1) / kThreads), unsigned(p.count));
  if (type == CUDA_R_16BF) {
    MultiplyPlainly<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(p);
  } else {
    MultiplyPlainly<float><<<grid, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  *handle = reinterpret_cast<cublasHandle_t>(new Context());
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete reinterpret_cast<Context*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Context*>(handle)->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

const char* cublasGetStatusString(cublasStatus_t) { return "an error of the plain products"; }

// alpha is not read: the backend wants 1. Neither is b's step: it wants 0.
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t,
                            int m, int n, int k, const void* /*alpha*/, const void* a,
                            cudaDataType a_type, int a_stride, const void* b, cudaDataType,
                            int b_stride, const void* beta, void* c, cudaDataType, int c_stride,
                            cublasComputeType_t, cublasGemmAlgo_t) {
  return Launch(handle, a_type,
                {transpose_a == CUBLAS_OP_T, m, n, k, a, a_stride, 0, b, b_stride,
                 *static_cast<const float*>(beta), static_cast<float*>(c), c_stride, 0, 1});
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transpose_a,
                                          cublasOperation_t, int m, int n, int k,
                                          const void* /*alpha*/, const void* a, cudaDataType a_type,
                                          int a_stride, long long int a_step, const void* b,
                                          cudaDataType, int b_stride, long long int,
                                          const void* beta, void* c, cudaDataType, int c_stride,
                                          long long int c_step, int count, cublasComputeType_t,
                                          cublasGemmAlgo_t) {
  return Launch(
      handle, a_type,
      {transpose_a == CUBLAS_OP_T, m, n, k, a, a_stride, a_step, b, b_stride,
       *static_cast<const float*>(beta), static_cast<float*>(c), c_stride, c_step, count});
}

}  // extern "C"
