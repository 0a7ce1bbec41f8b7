#include "runtime/backend/cpu/cpu_backend.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/cpu/attention.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/cpu_features.h"
#include "runtime/backend/cpu/device_experts.h"
#include "runtime/backend/cpu/elementwise.h"
#include "runtime/backend/cpu/experts.h"
#include "runtime/backend/cpu/linear.h"
#include "runtime/backend/cpu/linear_f32.h"
#include "runtime/backend/cpu/packed_weight.h"
#include "runtime/backend/cpu/prepare_qkv.h"
#include "runtime/backend/cpu/rms_norm.h"
#include "runtime/backend/cpu/routing.h"
#include "runtime/backend/cpu/swiglu.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/host_memory.h"

namespace moed::backend {
namespace {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int num_threads)
      : pool_(num_threads), experts_(pool_), attention_(pool_), linear_(pool_) {}

  std::string Description() const override {
    return absl::StrFormat("cpu (%s, %d threads)", InstructionSetName(), pool_.num_threads());
  }

  std::optional<DeviceMemory> Memory() override { return std::nullopt; }

  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryKind, std::string_view what) override {
    return AllocateHostMemory(bytes, what);
  }
  absl::Status CopyFromHost(std::span<const std::byte> source, std::byte* destination) override {
    std::memcpy(destination, source.data(), source.size());
    return absl::OkStatus();
  }
  uint64_t Issued() override { return 0; }
  absl::Status Upload(std::span<const std::byte> source, std::byte* destination,
                      uint64_t) override {
    return CopyFromHost(source, destination);
  }
  absl::Status CopyToHost(const std::byte* source, std::span<std::byte> destination) override {
    std::memcpy(destination.data(), source, destination.size());
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  bool SupportsExpertFormat(ExpertFormatKind) const override { return true; }

  absl::StatusOr<std::unique_ptr<DeviceExperts>> CreateDeviceExperts(
      const DeviceExpertsOptions& options) override {
    return CpuDeviceExperts::Create(options, *this);
  }

  absl::StatusOr<std::unique_ptr<RowSampler>> CreateRowSampler(const RowSamplerOptions&) override {
    return absl::UnimplementedError("the CPU's memory is the host's, which samples there");
  }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const Tensor& weight,
                                                              const Tensor& bias) override {
    return PackedWeight::Pack(pool_, weight, bias);
  }

  // The CPU's ops read the batch from their own arguments.
  void BeginStep(std::span<const int32_t>, std::span<const AttentionSegment>) override {}

  void RunRecorded(uint64_t, absl::FunctionRef<void()> issue) override { issue(); }

  void Embed(const Tensor& table, std::span<const int32_t> token_ids, const Tensor& out) override {
    EmbedRows(pool_, table, token_ids, out);
  }
  void RmsNorm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& out,
               const Tensor& out_f32) override {
    RmsNormRows(pool_, x, weight, epsilon, out, out_f32);
  }
  void Linear(const LinearWeight& weight, const Tensor& x, const Tensor& out,
              bool accumulate) override {
    linear_.Run(static_cast<const PackedWeight&>(weight), x, out, accumulate);
  }
  void LinearGroup(std::span<const LinearProduct> products, const Tensor& x) override {
    for (const LinearProduct& product : products) {
      Linear(*product.weight, x, product.out, /*accumulate=*/false);
    }
  }
  void NormLinearGroup(const Tensor& x, const Tensor& norm_weight, float epsilon,
                       const Tensor& normed, std::span<const LinearProduct> products) override {
    RmsNorm(x, norm_weight, epsilon, normed, Tensor());
    LinearGroup(products, normed);
  }
  void LinearF32(const Tensor& weight, const Tensor& x, const Tensor& out) override {
    LinearF32Rows(pool_, weight, x, out);
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override {
    SwiGluRows(pool_, gate_up, out);
  }
  void PrepareQkv(const QkPrepare& prepare, const AttentionSpec& spec,
                  std::span<const AttentionSegment> segments, const Tensor& q, const Tensor& k,
                  const Tensor& v, const KvLayer& cache) override {
    PrepareQkvRows(pool_, rope_table_, prepare, spec, segments, q, k, v, cache);
  }
  void Attention(const AttentionSpec& spec, std::span<const AttentionSegment> segments,
                 const Tensor& q, const KvLayer& cache, const Tensor& out) override {
    attention_.Run(spec, segments, q, cache, out);
  }
  void Route(const RouterSpec& spec, const Tensor& logits, const Tensor& ids,
             const Tensor& weights) override {
    RouteTokens(pool_, spec, logits, ids, weights);
  }
  void NormRoute(const RouterStep& step) override {
    RmsNorm(step.x, step.norm_weight, step.norm_epsilon, step.normed, step.normed_f32);
    LinearF32(step.router, step.normed_f32, step.logits);
    Route(step.spec, step.logits, step.ids, step.weights);
  }
  void Experts(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
               const Tensor& x, const Tensor& out) override {
    experts_.Run(format, work, top_k, x, out);
  }
  void CombineExperts(const Tensor& expert_out, const Tensor& weights,
                      const Tensor& residual) override {
    CombineExpertRows(pool_, expert_out, weights, residual);
  }
  void AddShared(const Tensor& shared, const Tensor& gate_logits, const Tensor& residual) override {
    AddSharedRows(pool_, shared, gate_logits, residual);
  }
  void GatherRows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override {
    GatherTensorRows(pool_, x, rows, out);
  }

 private:
  ThreadPool pool_;
  ExpertsOp experts_;
  RopeTable rope_table_;
  PagedAttention attention_;
  DenseProduct linear_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  constexpr int kMaxThreads = 1024;
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat("--cpu-threads must be auto or 1 to ",
                                                   kMaxThreads, ", not ", options.num_threads));
  }
  const int num_threads = options.num_threads > 0 ? options.num_threads : DefaultComputeThreads();
  return std::make_unique<CpuBackend>(num_threads);
}

}  // namespace moed::backend
