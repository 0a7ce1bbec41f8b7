#include "runtime/model/dummy_checkpoint.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/backend/host_memory.h"
#include "runtime/model/dense_shape.h"
#include "runtime/model/dummy_values.h"
#include "runtime/model/expert_pieces.h"

namespace moed::model {
namespace {

using backend::BFloat16;
using backend::DType;
using backend::ExpertPart;

std::span<BFloat16> ValuesOf(const backend::Tensor& tensor) {
  return {tensor.As<BFloat16>(), static_cast<size_t>(tensor.num_elements())};
}

// Distinct for every tensor of a model; experts and dense tensors never meet.
uint64_t ExpertTensorId(cache::ExpertKey key, ExpertPart part) {
  return (uint64_t{1} << 63) | static_cast<uint64_t>(key.layer) << 40 |
         static_cast<uint64_t>(key.expert) << 8 | static_cast<uint64_t>(part);
}
uint64_t DenseTensorId(DenseRole role, int layer) {
  return static_cast<uint64_t>(IsPerLayer(role) ? layer : 0) << 8 | static_cast<uint64_t>(role);
}

class DummyExpertSource : public ExpertSource {
 public:
  DummyExpertSource(const ModelConfig& config, uint64_t seed)
      : config_(config),
        format_(backend::ExpertFormatKind::kBF16, config.hidden, config.expert_intermediate),
        values_(seed, 0.02f) {}

  const backend::ExpertFormat& format() const override { return format_; }

  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override {
    if (key.layer < 0 || key.layer >= config_.num_layers() || !config_.layers[key.layer].is_moe ||
        key.expert < 0 || key.expert >= config_.router.num_experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", key.layer, " has no expert ", key.expert));
    }
    const auto fill = [&](ExpertPart part, int64_t first_row, const backend::Tensor& rows) {
      values_.Fill(ExpertTensorId(key, part), first_row * rows.dim(1), ValuesOf(rows));
      return absl::OkStatus();
    };
    return EncodeInPieces(format_, StoredParts(), share, fill, blob);
  }

 private:
  const ModelConfig& config_;
  backend::ExpertFormat format_;
  DummyValues values_;
};

class DummyCheckpoint : public Checkpoint {
 public:
  DummyCheckpoint(std::string directory, ModelConfig config, GenerationDefaults generation,
                  uint64_t seed)
      : directory_(std::move(directory)),
        config_(std::move(config)),
        generation_(std::move(generation)),
        embedding_(seed, 1.0f),
        output_(seed, 0.001f),
        product_(seed, 0.02f),
        experts_(config_, seed) {}

  const ModelConfig& config() const override { return config_; }
  const GenerationDefaults& generation() const override { return generation_; }
  const std::string& directory() const override { return directory_; }
  const ExpertSource& experts() const override { return experts_; }

  bool Has(DenseRole role, int layer) const override {
    return DenseShape(config_, role, layer).has_value();
  }

  DType DenseType(DenseRole, int) const override { return DType::kBF16; }

  absl::StatusOr<HostTensor> ReadDense(DenseRole role, int layer) const override {
    const auto shape = DenseShape(config_, role, layer);
    if (!shape.has_value()) {
      return absl::NotFoundError(absl::StrCat(directory_, ": no tensor of role ",
                                              static_cast<int>(role), " in layer ", layer));
    }
    backend::Tensor view = DenseView(nullptr, DType::kBF16, *shape);
    absl::StatusOr<backend::Buffer> buffer =
        backend::AllocateHostMemory(static_cast<size_t>(view.num_bytes()), "a dummy tensor");
    if (!buffer.ok()) return buffer.status();
    view = DenseView(buffer->data(), DType::kBF16, *shape);
    Fill(role, layer, ValuesOf(view));
    return HostTensor{*std::move(buffer), view};
  }

 private:
  void Fill(DenseRole role, int layer, std::span<BFloat16> values) const {
    switch (role) {
      case DenseRole::kFinalNorm:
      case DenseRole::kAttentionNorm:
      case DenseRole::kFfnNorm:
      case DenseRole::kQueryNorm:
      case DenseRole::kKeyNorm:
        std::fill(values.begin(), values.end(), backend::ToBFloat16(1));
        return;
      case DenseRole::kEmbedding:
        return embedding_.Fill(DenseTensorId(role, layer), 0, values);
      case DenseRole::kOutput:
        return output_.Fill(DenseTensorId(role, layer), 0, values);
      default:
        return product_.Fill(DenseTensorId(role, layer), 0, values);
    }
  }

  std::string directory_;
  ModelConfig config_;
  GenerationDefaults generation_;
  DummyValues embedding_;
  DummyValues output_;
  DummyValues product_;
  DummyExpertSource experts_;
};

}  // namespace

std::unique_ptr<Checkpoint> MakeDummyCheckpoint(std::string directory, ModelConfig config,
                                                GenerationDefaults generation, uint64_t seed) {
  return std::make_unique<DummyCheckpoint>(std::move(directory), std::move(config),
                                           std::move(generation), seed);
}

}  // namespace moed::model
