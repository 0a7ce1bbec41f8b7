// The CPU backend with memory that it calls a device's, so that a model runner keeps every expert
// in host memory and drives steps as on a GPU.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/cpu_backend.h"

namespace moed::testing {

class HostAsDevice : public backend::Backend {
 public:
  using Tensor = backend::Tensor;

  explicit HostAsDevice(int num_threads)
      : cpu_(*backend::CreateCpuBackend({.num_threads = num_threads})) {}

  std::string Description() const override { return cpu_->Description(); }
  std::optional<backend::DeviceMemory> Memory() override {
    return backend::DeviceMemory{.total_bytes = int64_t{1} << 30, .free_bytes = int64_t{1} << 30};
  }
  absl::StatusOr<backend::Buffer> Allocate(size_t bytes, backend::MemoryKind kind,
                                           std::string_view what) override {
    return cpu_->Allocate(bytes, kind, what);
  }
  absl::Status CopyFromHost(std::span<const std::byte> source, std::byte* destination) override {
    return cpu_->CopyFromHost(source, destination);
  }
  uint64_t Issued() override { return cpu_->Issued(); }
  absl::Status Upload(std::span<const std::byte> source, std::byte* destination,
                      uint64_t after) override {
    return cpu_->Upload(source, destination, after);
  }
  absl::Status CopyToHost(const std::byte* source, std::span<std::byte> destination) override {
    return cpu_->CopyToHost(source, destination);
  }
  absl::Status Synchronize() override { return cpu_->Synchronize(); }
  bool SupportsExpertFormat(backend::ExpertFormatKind kind) const override {
    return cpu_->SupportsExpertFormat(kind);
  }
  absl::StatusOr<std::unique_ptr<backend::DeviceExperts>> CreateDeviceExperts(
      const backend::DeviceExpertsOptions& options) override {
    return cpu_->CreateDeviceExperts(options);
  }
  absl::StatusOr<std::unique_ptr<backend::RowSampler>> CreateRowSampler(
      const backend::RowSamplerOptions& options) override {
    return cpu_->CreateRowSampler(options);
  }
  absl::StatusOr<std::unique_ptr<backend::LinearWeight>> PrepareLinear(
      const Tensor& weight, const Tensor& bias) override {
    return cpu_->PrepareLinear(weight, bias);
  }
  void BeginStep(std::span<const int32_t> token_ids,
                 std::span<const backend::AttentionSegment> segments) override {
    cpu_->BeginStep(token_ids, segments);
  }
  void RunRecorded(uint64_t key, absl::FunctionRef<void()> issue) override {
    cpu_->RunRecorded(key, issue);
  }
  void Embed(const Tensor& table, std::span<const int32_t> token_ids, const Tensor& out) override {
    cpu_->Embed(table, token_ids, out);
  }
  void RmsNorm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& out,
               const Tensor& out_f32) override {
    cpu_->RmsNorm(x, weight, epsilon, out, out_f32);
  }
  void Linear(const backend::LinearWeight& weight, const Tensor& x, const Tensor& out,
              bool accumulate) override {
    cpu_->Linear(weight, x, out, accumulate);
  }
  void LinearGroup(std::span<const backend::LinearProduct> products, const Tensor& x) override {
    cpu_->LinearGroup(products, x);
  }
  void NormLinearGroup(const Tensor& x, const Tensor& norm_weight, float epsilon,
                       const Tensor& normed,
                       std::span<const backend::LinearProduct> products) override {
    cpu_->NormLinearGroup(x, norm_weight, epsilon, normed, products);
  }
  void LinearF32(const Tensor& weight, const Tensor& x, const Tensor& out) override {
    cpu_->LinearF32(weight, x, out);
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override { cpu_->SwiGlu(gate_up, out); }
  void PrepareQkv(const backend::QkPrepare& prepare, const backend::AttentionSpec& spec,
                  std::span<const backend::AttentionSegment> segments, const Tensor& q,
                  const Tensor& k, const Tensor& v, const backend::KvLayer& cache) override {
    cpu_->PrepareQkv(prepare, spec, segments, q, k, v, cache);
  }
  void Attention(const backend::AttentionSpec& spec,
                 std::span<const backend::AttentionSegment> segments, const Tensor& q,
                 const backend::KvLayer& cache, const Tensor& out) override {
    cpu_->Attention(spec, segments, q, cache, out);
  }
  void Route(const backend::RouterSpec& spec, const Tensor& logits, const Tensor& ids,
             const Tensor& weights) override {
    cpu_->Route(spec, logits, ids, weights);
  }
  void NormRoute(const backend::RouterStep& step) override { cpu_->NormRoute(step); }
  void Experts(const backend::ExpertFormat& format, std::span<const backend::ExpertWork> work,
               int top_k, const Tensor& x, const Tensor& out) override {
    cpu_->Experts(format, work, top_k, x, out);
  }
  void CombineExperts(const Tensor& expert_out, const Tensor& weights,
                      const Tensor& residual) override {
    cpu_->CombineExperts(expert_out, weights, residual);
  }
  void AddShared(const Tensor& shared, const Tensor& gate_logits, const Tensor& residual) override {
    cpu_->AddShared(shared, gate_logits, residual);
  }
  void GatherRows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override {
    cpu_->GatherRows(x, rows, out);
  }

 private:
  std::unique_ptr<backend::Backend> cpu_;
};

}  // namespace moed::testing
