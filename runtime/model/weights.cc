#include "runtime/model/weights.h"

#include <span>
#include <utility>

#include "runtime/model/dense_values.h"
#include "runtime/model/model_size.h"

namespace moed::model {
namespace {

using backend::BFloat16;
using backend::DType;
using backend::Tensor;

// Reads tensors and hands them to the backend. The first failure is kept; what is asked for after
// it is empty, so that the caller looks at status() once.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, backend::Backend& backend,
               const LoadProgress& progress)
      : checkpoint_(checkpoint),
        backend_(backend),
        progress_(progress),
        bytes_total_(ComputeModelSize(checkpoint.config()).dense_bytes) {}

  const absl::Status& status() const { return status_; }

  // As f32; empty if the checkpoint has none.
  DeviceTensor Floats(DenseRole role, int layer) {
    if (!checkpoint_.Has(role, layer)) return {};
    const HostTensor tensor = Read(role, layer);
    if (!status_.ok()) return {};
    std::vector<float> values;
    AppendFloats(tensor.view, &values);
    const Tensor shape =
        tensor.view.rank() == 2
            ? Tensor(values.data(), DType::kF32, {tensor.view.dim(0), tensor.view.dim(1)})
            : Tensor(values.data(), DType::kF32, {tensor.view.num_elements()});
    return Upload(shape);
  }

  // The embedding [V, H], bf16, and the lm_head that it doubles as if `tied`.
  void EmbeddingAndHead(bool tied, Weights* weights) {
    const HostTensor embedding = Read(DenseRole::kEmbedding, 0);
    if (!status_.ok()) return;
    std::vector<BFloat16> converted;
    const Tensor table = AsBFloat16(embedding.view, &converted);
    weights->embedding = Upload(table);
    weights->lm_head = tied ? Prepare(table, Tensor()) : Linear(DenseRole::kLmHead, 0);
  }

  std::unique_ptr<backend::LinearWeight> Linear(DenseRole role, int layer) {
    return LinearWithBias(role, Tensor(), layer);
  }

  std::unique_ptr<backend::LinearWeight> Linear(DenseRole role, DenseRole bias_role, int layer) {
    if (!checkpoint_.Has(bias_role, layer)) return Linear(role, layer);
    const HostTensor bias = Read(bias_role, layer);
    if (!status_.ok()) return nullptr;
    std::vector<float> values;
    AppendFloats(bias.view, &values);
    return LinearWithBias(
        role, Tensor(values.data(), DType::kF32, {static_cast<int64_t>(values.size())}), layer);
  }

  // Two weights of one input, [out_a + out_b, in]: one product instead of two.
  std::unique_ptr<backend::LinearWeight> Stacked(DenseRole a, DenseRole b, int layer) {
    const HostTensor upper = Read(a, layer);
    const HostTensor lower = Read(b, layer);
    if (!status_.ok()) return nullptr;
    std::vector<BFloat16> values;
    AppendBFloat16s(upper.view, &values);
    AppendBFloat16s(lower.view, &values);
    return Prepare(Tensor(values.data(), DType::kBF16,
                          {upper.view.dim(0) + lower.view.dim(0), upper.view.dim(1)}),
                   Tensor());
  }

 private:
  HostTensor Read(DenseRole role, int layer) {
    if (!status_.ok()) return {};
    auto tensor = checkpoint_.ReadDense(role, layer);
    if (!tensor.ok()) {
      status_ = tensor.status();
      return {};
    }
    return *std::move(tensor);
  }

  // `tensor` itself if it is bf16 already, else a view of `converted`.
  static Tensor AsBFloat16(const Tensor& tensor, std::vector<BFloat16>* converted) {
    if (tensor.dtype() == DType::kBF16) return tensor;
    AppendBFloat16s(tensor, converted);
    return Tensor(converted->data(), DType::kBF16, {tensor.dim(0), tensor.dim(1)});
  }

  std::unique_ptr<backend::LinearWeight> LinearWithBias(DenseRole role, const Tensor& bias,
                                                        int layer) {
    const HostTensor weight = Read(role, layer);
    if (!status_.ok()) return nullptr;
    std::vector<BFloat16> converted;
    return Prepare(AsBFloat16(weight.view, &converted), bias);
  }

  std::unique_ptr<backend::LinearWeight> Prepare(const Tensor& weight, const Tensor& bias) {
    auto linear = backend_.PrepareLinear(weight, bias);
    if (!linear.ok()) {
      status_ = linear.status();
      return nullptr;
    }
    Report(weight.num_bytes() + (bias.empty() ? 0 : bias.num_bytes()));
    return *std::move(linear);
  }

  DeviceTensor Upload(const Tensor& host) {
    auto buffer =
        backend_.Allocate(host.num_bytes(), backend::MemoryKind::kDevice, "dense weights");
    status_.Update(buffer.status());
    if (!status_.ok()) return {};
    status_.Update(backend_.CopyFromHost(
        {static_cast<const std::byte*>(host.data()), static_cast<size_t>(host.num_bytes())},
        buffer->data()));
    Report(host.num_bytes());
    const Tensor view = host.At(buffer->data());
    return {*std::move(buffer), view};
  }

  void Report(int64_t bytes) {
    bytes_done_ += bytes;
    if (progress_) progress_(bytes_done_, bytes_total_);
  }

  const Checkpoint& checkpoint_;
  backend::Backend& backend_;
  const LoadProgress& progress_;
  int64_t bytes_done_ = 0;
  int64_t bytes_total_;
  absl::Status status_;
};

AttentionWeights LoadAttention(WeightLoader& loader, int layer) {
  return {
      .norm = loader.Floats(DenseRole::kAttentionNorm, layer),
      .query = loader.Linear(DenseRole::kQuery, DenseRole::kQueryBias, layer),
      .key = loader.Linear(DenseRole::kKey, DenseRole::kKeyBias, layer),
      .value = loader.Linear(DenseRole::kValue, DenseRole::kValueBias, layer),
      .output = loader.Linear(DenseRole::kOutput, DenseRole::kOutputBias, layer),
      .query_norm = loader.Floats(DenseRole::kQueryNorm, layer),
      .key_norm = loader.Floats(DenseRole::kKeyNorm, layer),
  };
}

LayerWeights LoadLayer(WeightLoader& loader, const ModelConfig& config, int layer) {
  LayerWeights weights;
  weights.attention = LoadAttention(loader, layer);
  weights.ffn_norm = loader.Floats(DenseRole::kFfnNorm, layer);
  if (!config.layers[layer].is_moe) {
    weights.mlp = {.gate_up = loader.Stacked(DenseRole::kMlpGate, DenseRole::kMlpUp, layer),
                   .down = loader.Linear(DenseRole::kMlpDown, layer)};
    return weights;
  }
  weights.router = loader.Floats(DenseRole::kRouter, layer);
  if (config.shared_intermediate == 0) return weights;
  weights.mlp = {.gate_up = loader.Stacked(DenseRole::kSharedGate, DenseRole::kSharedUp, layer),
                 .down = loader.Linear(DenseRole::kSharedDown, layer)};
  if (config.shared_gate) weights.shared_gate = loader.Floats(DenseRole::kSharedExpertGate, layer);
  return weights;
}

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, backend::Backend& backend,
                                    const LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  WeightLoader loader(checkpoint, backend, progress);
  Weights weights;
  loader.EmbeddingAndHead(config.tie_embeddings, &weights);
  weights.final_norm = loader.Floats(DenseRole::kFinalNorm, 0);
  for (int layer = 0; layer < config.num_layers() && loader.status().ok(); ++layer) {
    weights.layers.push_back(LoadLayer(loader, config, layer));
  }
  if (!loader.status().ok()) return loader.status();
  return weights;
}

}  // namespace moed::model
