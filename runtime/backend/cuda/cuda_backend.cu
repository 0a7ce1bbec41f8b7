#include "runtime/backend/cuda/cuda_backend.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "runtime/backend/cuda/attention.h"
#include "runtime/backend/cuda/cuda_status.h"
#include "runtime/backend/cuda/elementwise.h"
#include "runtime/backend/cuda/experts.h"
#include "runtime/backend/cuda/linear.h"
#include "runtime/backend/cuda/prepare_qkv.h"
#include "runtime/backend/cuda/routing.h"
#include "runtime/backend/cuda/step_tables.h"
#include "runtime/backend/cuda/workspace.h"

namespace moed::backend {
namespace {

class CudaLinear : public LinearWeight {
 public:
  CudaLinear(Buffer weight, Buffer bias, int64_t out_features, int64_t in_features)
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        out_features_(out_features),
        in_features_(in_features) {}
  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  const __nv_bfloat16* weight() const {
    return reinterpret_cast<const __nv_bfloat16*>(weight_.data());
  }
  const float* bias() const { return reinterpret_cast<const float*>(bias_.data()); }

 private:
  Buffer weight_;
  Buffer bias_;
  int64_t out_features_;
  int64_t in_features_;
};

std::span<const std::byte> Bytes(const Tensor& tensor) {
  return {tensor.As<const std::byte>(), static_cast<size_t>(tensor.num_bytes())};
}

class CudaBackend : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<Backend>> Create(int device);

  std::string Description() const override { return properties_.name; }

  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryKind kind, std::string_view what) override;
  absl::Status CopyFromHost(std::span<const std::byte> source, std::byte* destination) override;
  absl::Status CopyToHost(const std::byte* source, std::span<std::byte> destination) override;
  absl::Status Synchronize() override;
  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const Tensor& weight,
                                                              const Tensor& bias) override;

  void BeginStep(std::span<const int32_t> token_ids,
                 std::span<const AttentionSegment> segments) override {
    Note(step_tables_.Upload(token_ids, segments, stream()));
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
  void LinearF32(const Tensor& weight, const Tensor& x, const Tensor& out) override {
    LaunchLinearF32(weight.As<float>(), x.As<float>(), static_cast<int>(x.dim(0)),
                    static_cast<int>(weight.dim(1)), static_cast<int>(weight.dim(0)),
                    out.As<float>(), stream());
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override {
    LaunchSwiGlu(gate_up.As<float>(), static_cast<int>(out.dim(0)), static_cast<int>(out.dim(1)),
                 out.As<__nv_bfloat16>(), stream());
  }
  void PrepareQkv(const QkPrepare& prepare, const AttentionSpec& spec,
                  std::span<const AttentionSegment> segments, const Tensor& q, const Tensor& k,
                  const Tensor& v, const KvLayer& cache) override;
  void Attention(const AttentionSpec& spec, std::span<const AttentionSegment> segments,
                 const Tensor& q, const KvLayer& cache, const Tensor& out) override;
  void Route(const RouterSpec& spec, const Tensor& logits, const Tensor& ids,
             const Tensor& weights) override {
    LaunchRoute(spec, logits.As<float>(), static_cast<int>(logits.dim(0)), ids.As<int32_t>(),
                weights.As<float>(), stream());
  }
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
  const float* DeviceFrequencies(const Tensor& host);

  cudaDeviceProp properties_;
  absl::Status status_;
  CudaStream stream_;
  CublasHandle cublas_;
  StepTables step_tables_;
  Workspace cublas_workspace_{WorkspaceMemory::kDevice};
  Workspace attention_workspace_{WorkspaceMemory::kDevice};
  Workspace rows_workspace_{WorkspaceMemory::kDevice};
  std::unique_ptr<CudaExperts> experts_;
  // Inverse frequencies by their place in host memory, which the model keeps.
  std::map<const void*, Buffer> frequencies_;
};

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(int device) {
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend());
  absl::Status status = CudaStatus(cudaSetDevice(device), "choosing the CUDA device");
  status.Update(CudaStatus(cudaGetDeviceProperties(&backend->properties_, device),
                           "asking the CUDA device for its properties"));
  status.Update(
      CudaStatus(cudaStreamCreateWithFlags(backend->stream_.receive(), cudaStreamNonBlocking),
                 "creating a CUDA stream"));
  status.Update(CublasStatus(cublasCreate(backend->cublas_.receive()), "creating cuBLAS"));
  if (!status.ok()) return status;
  // A fixed workspace lets cuBLAS be captured in graphs.
  constexpr size_t kCublasWorkspaceBytes = 32 << 20;
  absl::StatusOr<std::byte*> workspace = backend->cublas_workspace_.Reserve(kCublasWorkspaceBytes);
  if (!workspace.ok()) return workspace.status();
  status.Update(CublasStatus(cublasSetStream(backend->cublas_.get(), backend->stream()),
                             "giving cuBLAS its stream"));
  status.Update(
      CublasStatus(cublasSetWorkspace(backend->cublas_.get(), *workspace, kCublasWorkspaceBytes),
                   "giving cuBLAS its workspace"));
  if (!status.ok()) return status;
  backend->experts_ = std::make_unique<CudaExperts>(backend->cublas_.get(), backend->stream(),
                                                    backend->properties_.multiProcessorCount);
  return backend;
}

absl::StatusOr<Buffer> CudaBackend::Allocate(size_t bytes, MemoryKind kind, std::string_view what) {
  void* data = nullptr;
  const bool on_device = kind == MemoryKind::kDevice;
  const cudaError_t error = on_device ? cudaMalloc(&data, bytes) : cudaMallocHost(&data, bytes);
  absl::Status status = CudaStatus(
      error, absl::StrCat("taking ", bytes,
                          on_device ? " bytes of VRAM for " : " bytes of pinned memory for ",
                          std::string(what)));
  if (!status.ok()) return status;
  return Buffer(data, bytes, [on_device](void* memory, size_t) {
    if (on_device) {
      cudaFree(memory);
    } else {
      cudaFreeHost(memory);
    }
  });
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

absl::Status CudaBackend::Synchronize() {
  Note(CudaStatus(cudaGetLastError(), "launching kernels"));
  Note(CudaStatus(cudaStreamSynchronize(stream()), "running kernels"));
  return status_;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CudaBackend::PrepareLinear(const Tensor& weight,
                                                                         const Tensor& bias) {
  absl::StatusOr<Buffer> values =
      Allocate(weight.num_bytes(), MemoryKind::kDevice, "a dense weight");
  if (!values.ok()) return values.status();
  absl::Status status = CopyFromHost(Bytes(weight), values->data());
  if (!status.ok()) return status;
  Buffer bias_values;
  if (!bias.empty()) {
    absl::StatusOr<Buffer> buffer = Allocate(bias.num_bytes(), MemoryKind::kDevice, "a bias");
    if (!buffer.ok()) return buffer.status();
    status = CopyFromHost(Bytes(bias), buffer->data());
    if (!status.ok()) return status;
    bias_values = *std::move(buffer);
  }
  return std::make_unique<CudaLinear>(*std::move(values), std::move(bias_values), weight.dim(0),
                                      weight.dim(1));
}

void CudaBackend::Linear(const LinearWeight& weight, const Tensor& x, const Tensor& out,
                         bool accumulate) {
  const auto& linear = static_cast<const CudaLinear&>(weight);
  LinearArguments arguments;
  arguments.weight = linear.weight();
  arguments.bias = linear.bias();
  arguments.x = x.As<__nv_bfloat16>();
  arguments.out = out.As<float>();
  arguments.rows = static_cast<int>(x.dim(0));
  arguments.in_features = static_cast<int>(linear.in_features());
  arguments.out_features = static_cast<int>(linear.out_features());
  arguments.accumulate = accumulate;
  Note(LaunchLinear(arguments, cublas_.get(), stream()));
}

const float* CudaBackend::DeviceFrequencies(const Tensor& host) {
  auto [entry, inserted] = frequencies_.try_emplace(host.data());
  if (inserted) {
    absl::StatusOr<Buffer> buffer =
        Allocate(host.num_bytes(), MemoryKind::kDevice, "rotary frequencies");
    Note(buffer.status());
    if (!buffer.ok()) return nullptr;
    Note(CopyFromHost(Bytes(host), buffer->data()));
    entry->second = *std::move(buffer);
  }
  return reinterpret_cast<const float*>(entry->second.data());
}

void CudaBackend::PrepareQkv(const QkPrepare& prepare, const AttentionSpec& spec,
                             std::span<const AttentionSegment>, const Tensor& q, const Tensor& k,
                             const Tensor& v, const KvLayer& cache) {
  PrepareQkvArguments arguments;
  arguments.step = step_tables_.view();
  arguments.q = q.As<float>();
  arguments.k = k.As<float>();
  arguments.v = v.As<float>();
  arguments.q_norm = prepare.q_norm.As<float>();
  arguments.k_norm = prepare.k_norm.As<float>();
  arguments.inverse_frequencies = DeviceFrequencies(prepare.rope.inverse_frequencies);
  arguments.keys = cache.keys.As<__nv_bfloat16>();
  arguments.values = cache.values.As<__nv_bfloat16>();
  arguments.tokens = static_cast<int>(q.dim(0));
  arguments.query_heads = spec.query_heads;
  arguments.kv_heads = spec.kv_heads;
  arguments.head_dim = spec.head_dim;
  arguments.rotary_dims = prepare.rope.rotary_dims;
  arguments.block_tokens = cache.block_tokens;
  arguments.norm_per_head = prepare.norm_per_head;
  arguments.interleaved = prepare.rope.interleaved;
  arguments.norm_epsilon = prepare.norm_epsilon;
  arguments.clip = prepare.clip_qkv;
  arguments.attention_factor = prepare.rope.attention_factor;
  LaunchPrepareQkv(arguments, stream());
}

void CudaBackend::Attention(const AttentionSpec& spec, std::span<const AttentionSegment>,
                            const Tensor& q, const KvLayer& cache, const Tensor& out) {
  AttentionArguments arguments;
  arguments.step = step_tables_.view();
  arguments.q = q.As<float>();
  arguments.keys = cache.keys.As<__nv_bfloat16>();
  arguments.values = cache.values.As<__nv_bfloat16>();
  arguments.out = out.As<__nv_bfloat16>();
  arguments.tokens = static_cast<int>(q.dim(0));
  arguments.query_heads = spec.query_heads;
  arguments.kv_heads = spec.kv_heads;
  arguments.head_dim = spec.head_dim;
  arguments.block_tokens = cache.block_tokens;
  arguments.sliding_window = spec.sliding_window;
  arguments.scale = spec.scale;
  arguments.splits = AttentionSplits(arguments.tokens, spec.kv_heads, step_tables_.max_context(),
                                     properties_.multiProcessorCount);
  absl::StatusOr<std::byte*> scratch = attention_workspace_.Reserve(std::max<size_t>(
      256,
      AttentionScratchBytes(arguments.tokens, spec.query_heads, spec.head_dim, arguments.splits)));
  Note(scratch.status());
  if (!scratch.ok()) return;
  arguments.scratch = reinterpret_cast<float*>(*scratch);
  if (!LaunchAttention(arguments, stream())) {
    Note(absl::UnimplementedError(
        absl::StrCat("the CUDA backend has no attention for head_dim ", spec.head_dim,
                     "; it has 32, 64, 96, 128 and 256. Serve the model with --device cpu")));
  }
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
  return CudaBackend::Create(options.device);
}

}  // namespace moed::backend
