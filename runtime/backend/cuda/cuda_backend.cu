#include "runtime/backend/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/backend/cuda/attention/attention_ops.h"
#include "runtime/backend/cuda/attention/prompt_attention.h"
#include "runtime/backend/cuda/dense/cublas.h"
#include "runtime/backend/cuda/dense/dense_weight.h"
#include "runtime/backend/cuda/dense/elementwise.h"
#include "runtime/backend/cuda/dense/linear.h"
#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/pinned_memory.h"
#include "runtime/backend/cuda/device/side_stream.h"
#include "runtime/backend/cuda/device/step_graphs.h"
#include "runtime/backend/cuda/device/step_tables.h"
#include "runtime/backend/cuda/device/upload_streams.h"
#include "runtime/backend/cuda/device/workspace.h"
#include "runtime/backend/cuda/experts/device_experts.h"
#include "runtime/backend/cuda/prefill/experts.h"
#include "runtime/backend/cuda/routing/routing.h"
#include "runtime/backend/cuda/sampling/row_sampler.h"

namespace moed::backend {
namespace {

class CudaBackend : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const CudaBackendOptions& options);

  std::string Description() const override { return properties_.name; }

  std::optional<DeviceMemory> Memory() override;
  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryKind kind, std::string_view what) override;
  absl::Status CopyFromHost(std::span<const std::byte> source, std::byte* destination) override;
  uint64_t Issued() override;
  absl::Status Upload(std::span<const std::byte> source, std::byte* destination,
                      uint64_t after) override {
    return uploads_.Copy(source, destination, after);
  }
  absl::Status CopyToHost(const std::byte* source, std::span<std::byte> destination) override;
  absl::Status Synchronize() override;
  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const Tensor& weight,
                                                              const Tensor& bias) override {
    return MakeCudaLinear(weight, bias, *this);
  }
  bool SupportsExpertFormat(ExpertFormatKind) const override { return true; }
  absl::StatusOr<std::unique_ptr<DeviceExperts>> CreateDeviceExperts(
      const DeviceExpertsOptions& options) override {
    return CudaDeviceExperts::Create(options, *this, step_tables_,
                                     reinterpret_cast<int*>(arrived_.data()), stream(), side_,
                                     properties_.multiProcessorCount);
  }
  absl::StatusOr<std::unique_ptr<RowSampler>> CreateRowSampler(
      const RowSamplerOptions& options) override {
    return CudaRowSampler::Create(options, status_, stream());
  }

  void BeginStep(std::span<const int32_t> token_ids,
                 std::span<const AttentionSegment> segments) override {
    Note(step_tables_.Upload(token_ids, segments, stream()));
  }

  void RunRecorded(uint64_t key, absl::FunctionRef<void()> issue) override {
    const uint64_t moves = step_tables_.moves() + attention_->moves();
    const auto issue_and_join = [&] {
      issue();
      Note(side_.Join(stream()));
    };
    Note(graphs_.Run({key, step_tables_.max_context(), step_tables_.layout()}, moves,
                     issue_and_join, stream()));
  }

  void Embed(const Tensor& table, std::span<const int32_t> token_ids, const Tensor& out) override {
    LaunchEmbed(table.As<__nv_bfloat16>(), step_tables_.view().token_ids,
                static_cast<int>(token_ids.size()), static_cast<int>(table.dim(1)), out.As<float>(),
                stream());
  }
  void RmsNorm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& out,
               const Tensor& out_f32) override {
    LaunchRmsNorm(x.As<float>(), weight.As<float>(), epsilon, static_cast<int>(x.dim(0)),
                  static_cast<int>(x.dim(1)), out.As<__nv_bfloat16>(), out_f32.As<float>(),
                  stream());
  }
  void Linear(const LinearWeight& weight, const Tensor& x, const Tensor& out,
              bool accumulate) override;
  void LinearGroup(std::span<const LinearProduct> products, const Tensor& x) override;
  void NormLinearGroup(const Tensor& x, const Tensor& norm_weight, float epsilon,
                       const Tensor& normed, std::span<const LinearProduct> products) override;
  void LinearF32(const Tensor& weight, const Tensor& x, const Tensor& out) override {
    Note(LaunchLinearF32(weight.As<float>(), x.As<float>(), static_cast<int>(x.dim(0)),
                         static_cast<int>(weight.dim(1)), static_cast<int>(weight.dim(0)),
                         out.As<float>(), *cublas_, stream()));
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override {
    LaunchSwiGlu(gate_up.As<float>(), static_cast<int>(out.dim(0)), static_cast<int>(out.dim(1)),
                 out.As<__nv_bfloat16>(), stream());
  }
  void PrepareQkv(const QkPrepare& prepare, const AttentionSpec& spec,
                  std::span<const AttentionSegment>, const Tensor& q, const Tensor& k,
                  const Tensor& v, const KvLayer& cache) override {
    Note(attention_->Prepare(prepare, spec, q, k, v, cache));
  }
  void Attention(const AttentionSpec& spec, std::span<const AttentionSegment>, const Tensor& q,
                 const KvLayer& cache, const Tensor& out) override {
    Note(attention_->Attend(spec, q, cache, out));
  }
  void PrepareAndAttend(const QkPrepare& prepare, const AttentionSpec& spec,
                        std::span<const AttentionSegment>, const Tensor& q, const Tensor& k,
                        const Tensor& v, const KvLayer& cache, const Tensor& out) override {
    Note(attention_->PrepareAndAttend(prepare, spec, q, k, v, cache, out));
  }
  bool FusedAttention(const AttentionHalf& half) override {
    if (!attention_->Fuses(half)) return false;
    Note(attention_->RunFused(half));
    return true;
  }
  void Route(const RouterSpec& spec, const Tensor& logits, const Tensor& ids,
             const Tensor& weights) override {
    LaunchRoute(spec, logits.As<float>(), static_cast<int>(logits.dim(0)), ids.As<int32_t>(),
                weights.As<float>(), stream());
  }
  void NormRoute(const RouterStep& step) override;
  void Experts(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
               const Tensor& x, const Tensor& out) override {
    Note(experts_->Run(format, work, top_k, x, out));
  }
  void CombineExperts(const Tensor& expert_out, const Tensor& weights,
                      const Tensor& residual) override {
    LaunchCombineExperts(expert_out.As<float>(), weights.As<float>(),
                         static_cast<int>(residual.dim(0)), static_cast<int>(weights.dim(1)),
                         static_cast<int>(residual.dim(1)), residual.As<float>(), stream());
  }
  void AddShared(const Tensor& shared, const Tensor& gate_logits, const Tensor& residual) override {
    LaunchAddShared(shared.As<float>(), gate_logits.As<float>(), static_cast<int>(residual.dim(0)),
                    static_cast<int>(residual.dim(1)), residual.As<float>(), stream());
  }
  void GatherRows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override;

 private:
  CudaBackend() = default;
  cudaStream_t stream() const { return stream_.get(); }
  // Keeps the first error; Synchronize returns it from then on.
  void Note(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  cudaDeviceProp properties_;
  absl::Status status_;
  CudaStream stream_;
  SideStream side_;
  std::unique_ptr<Cublas> cublas_;
  StepTables step_tables_;
  StepGraphs graphs_;
  UploadStreams uploads_;
  size_t most_pinned_bytes_ = 0;
  Buffer arrived_;  // [kMaxSplitGroups] i32: blocks that ended, zeros between launches
  Workspace rows_workspace_{WorkspaceMemory::kDevice};
  std::unique_ptr<CudaExperts> experts_;
  std::unique_ptr<CudaAttention> attention_;
};

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(const CudaBackendOptions& options) {
  const int device = options.device;
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend());
  backend->most_pinned_bytes_ = options.most_pinned_bytes;
  absl::Status status = CudaStatus(cudaSetDevice(device), "choosing the CUDA device");
  status.Update(CudaStatus(cudaGetDeviceProperties(&backend->properties_, device),
                           "asking the CUDA device for its properties"));
  status.Update(
      CudaStatus(cudaStreamCreateWithFlags(backend->stream_.receive(), cudaStreamNonBlocking),
                 "creating a CUDA stream"));
  status.Update(backend->side_.Create());
  if (!status.ok()) return status;
  auto cublas = Cublas::Create(backend->stream());
  if (!cublas.ok()) return cublas.status();
  backend->cublas_ = *std::move(cublas);
  constexpr size_t kArrivedBytes = kMaxSplitGroups * sizeof(int);
  auto arrived = backend->Allocate(kArrivedBytes, MemoryKind::kDevice, "counters of blocks");
  if (!arrived.ok()) return arrived.status();
  backend->arrived_ = *std::move(arrived);
  status = CudaStatus(cudaMemset(backend->arrived_.data(), 0, kArrivedBytes),
                      "clearing the counters of blocks");
  status.Update(CudaStatus(PreparePromptAttention(), "preparing the attention kernels"));
  if (!status.ok()) return status;
  backend->attention_ = std::make_unique<CudaAttention>(
      backend->step_tables_, reinterpret_cast<int*>(backend->arrived_.data()), backend->stream(),
      backend->properties_.multiProcessorCount);
  backend->experts_ = std::make_unique<CudaExperts>(*backend->cublas_, backend->stream(),
                                                    backend->properties_.multiProcessorCount);
  return backend;
}

std::optional<DeviceMemory> CudaBackend::Memory() {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  Note(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free VRAM"));
  return DeviceMemory{static_cast<int64_t>(total_bytes), static_cast<int64_t>(free_bytes)};
}

absl::StatusOr<Buffer> CudaBackend::Allocate(size_t bytes, MemoryKind kind, std::string_view what) {
  if (kind == MemoryKind::kHost) {
    if (most_pinned_bytes_ == 0 || bytes <= most_pinned_bytes_) {
      return AllocatePinnedMemory(bytes, what);
    }
    return absl::FailedPreconditionError(
        absl::StrCat("pinning ", bytes, " bytes of host memory for ", std::string(what),
                     " is not allowed; the limit is ", most_pinned_bytes_));
  }
  if (bytes == 0) return Buffer();
  void* data = nullptr;
  absl::Status status =
      CudaStatus(cudaMalloc(&data, bytes),
                 absl::StrCat("taking ", bytes, " bytes of VRAM for ", std::string(what)));
  if (!status.ok()) return status;
  return Buffer(data, bytes, [](void* memory, size_t) { cudaFree(memory); });
}

absl::Status CudaBackend::CopyFromHost(std::span<const std::byte> source, std::byte* destination) {
  absl::Status status = CudaStatus(
      cudaMemcpyAsync(destination, source.data(), source.size(), cudaMemcpyHostToDevice, stream()),
      "copying to the device");
  status.Update(CudaStatus(cudaStreamSynchronize(stream()), "copying to the device"));
  Note(status);
  return status;
}

absl::Status CudaBackend::CopyToHost(const std::byte* source, std::span<std::byte> destination) {
  absl::Status status = CudaStatus(cudaMemcpyAsync(destination.data(), source, destination.size(),
                                                   cudaMemcpyDeviceToHost, stream()),
                                   "copying from the device");
  status.Update(CudaStatus(cudaStreamSynchronize(stream()), "copying from the device"));
  Note(status);
  return status;
}

uint64_t CudaBackend::Issued() {
  const absl::StatusOr<uint64_t> mark = uploads_.Mark(stream());
  Note(mark.status());
  return mark.value_or(0);
}

absl::Status CudaBackend::Synchronize() {
  Note(CudaStatus(cudaGetLastError(), "launching kernels"));
  Note(side_.Join(stream()));
  Note(CudaStatus(cudaStreamSynchronize(stream()), "running kernels"));
  return status_;
}

void CudaBackend::Linear(const LinearWeight& weight, const Tensor& x, const Tensor& out,
                         bool accumulate) {
  const LinearProduct product = {&weight, out};
  Note(LaunchLinear(ArgumentsOf({&product, 1}, x, accumulate), *cublas_, stream()));
}

void CudaBackend::LinearGroup(std::span<const LinearProduct> products, const Tensor& x) {
  Note(LaunchLinear(ArgumentsOf(products, x, /*accumulate=*/false), *cublas_, stream()));
}

void CudaBackend::NormLinearGroup(const Tensor& x, const Tensor& norm_weight, float epsilon,
                                  const Tensor& normed, std::span<const LinearProduct> products) {
  LinearArguments arguments = ArgumentsOf(products, normed, /*accumulate=*/false);
  if (LinearNorms(arguments)) {
    arguments.residual = x.As<float>();
    arguments.norm_weight = norm_weight.As<float>();
    arguments.norm_epsilon = epsilon;
  } else {
    RmsNorm(x, norm_weight, epsilon, normed, Tensor());
  }
  Note(LaunchLinear(arguments, *cublas_, stream()));
}

void CudaBackend::NormRoute(const RouterStep& step) {
  const int tokens = static_cast<int>(step.x.dim(0));
  const int hidden = static_cast<int>(step.x.dim(1));
  if (!NormRouteSupports(tokens, hidden)) {
    RmsNorm(step.x, step.norm_weight, step.norm_epsilon, step.normed, step.normed_f32);
    LinearF32(step.router, step.normed_f32, step.logits);
    Route(step.spec, step.logits, step.ids, step.weights);
    return;
  }
  Note(CudaStatus(
      LaunchNormRoute(NormRouteArgumentsOf(step, reinterpret_cast<int*>(arrived_.data())), tokens,
                      stream()),
      "launching the router"));
}

void CudaBackend::GatherRows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) {
  absl::StatusOr<std::byte*> device = rows_workspace_.Reserve(rows.size_bytes());
  Note(device.status());
  if (!device.ok()) return;
  Note(CopyFromHost(std::as_bytes(rows), *device));
  LaunchGatherRows(x.As<float>(), reinterpret_cast<const int32_t*>(*device),
                   static_cast<int>(rows.size()), static_cast<int>(x.dim(1)), out.As<float>(),
                   stream());
}

}  // namespace

bool CudaAvailable() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options) {
  return CudaBackend::Create(options);
}

}  // namespace moed::backend
