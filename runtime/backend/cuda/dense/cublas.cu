#include <dlfcn.h>

#include "runtime/backend/cuda/dense/cublas.h"
#include "runtime/backend/cuda/device/cuda_status.h"

namespace moed::backend {
namespace {

constexpr char kLibrary[] = "libcublas.so.13";
constexpr size_t kWorkspaceBytes = 32 << 20;

// False if the library has no such function.
template <typename Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Create(cudaStream_t stream) {
  std::unique_ptr<Cublas> cublas(new Cublas());
  if (absl::Status status = cublas->Load(); !status.ok()) return status;
  absl::Status status = cublas->Check(cublas->create_(&cublas->handle_), "creating cuBLAS");
  if (!status.ok()) return status;
  const absl::StatusOr<std::byte*> workspace = cublas->workspace_.Reserve(kWorkspaceBytes);
  if (!workspace.ok()) return workspace.status();
  status = cublas->Check(cublas->set_stream_(cublas->handle_, stream), "giving cuBLAS its stream");
  status.Update(cublas->Check(cublas->set_workspace_(cublas->handle_, *workspace, kWorkspaceBytes),
                              "giving cuBLAS its workspace"));
  if (!status.ok()) return status;
  return cublas;
}

Cublas::~Cublas() {
  if (handle_ != nullptr) destroy_(handle_);
}

// The library stays loaded: it keeps threads and device state that cannot be undone.
absl::Status Cublas::Load() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat(
        "the CUDA backend needs ", kLibrary, " (", dlerror(),
        "); install cuBLAS 13 or name its folder in LD_LIBRARY_PATH, or run with --device cpu"));
  }
  if (Find(library, "cublasCreate_v2", &create_) && Find(library, "cublasDestroy_v2", &destroy_) &&
      Find(library, "cublasSetStream_v2", &set_stream_) &&
      Find(library, "cublasSetWorkspace_v2", &set_workspace_) &&
      Find(library, "cublasGetStatusString", &status_string_) &&
      Find(library, "cublasGemmEx", &gemm_) &&
      Find(library, "cublasGemmStridedBatchedEx", &gemm_batch_)) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrCat(kLibrary, " lacks functions of cuBLAS 13"));
}

absl::Status Cublas::Check(cublasStatus_t status, std::string_view what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(std::string(what), ": ", status_string_(status)));
}

template <typename T>
absl::Status Cublas::MultiplyAs(cudaDataType type, const MatrixProduct<T>& p,
                                std::string_view what) const {
  const float one = 1.0f;
  return Check(gemm_(handle_, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, p.m, p.n, p.k,
                     &one, p.a, type, p.a_stride, p.b, type, p.b_stride, &p.beta, p.c, CUDA_R_32F,
                     p.c_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
               what);
}

absl::Status Cublas::Multiply(const MatrixProduct<__nv_bfloat16>& product,
                              std::string_view what) const {
  return MultiplyAs(CUDA_R_16BF, product, what);
}

absl::Status Cublas::Multiply(const MatrixProduct<__nv_bfloat16>& p, const ProductBatch& batch,
                              std::string_view what) const {
  const float one = 1.0f;
  return Check(
      gemm_batch_(handle_, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, p.m, p.n, p.k,
                  &one, p.a, CUDA_R_16BF, p.a_stride, batch.a_step, p.b, CUDA_R_16BF, p.b_stride,
                  /*strideB=*/0, &p.beta, p.c, CUDA_R_32F, p.c_stride, batch.c_step, batch.count,
                  CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      what);
}

absl::Status Cublas::Multiply(const MatrixProduct<float>& product, std::string_view what) const {
  return MultiplyAs(CUDA_R_32F, product, what);
}

}  // namespace moed::backend
