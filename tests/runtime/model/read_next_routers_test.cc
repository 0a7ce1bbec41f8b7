#include "runtime/model/read_next_routers.h"

#include <cmath>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/host_memory.h"
#include "tests/runtime/model/checkpoint_files.h"

namespace moed::model {
namespace {

using backend::BFloat16;

// Random weights, but for norms of each layer's own.
class NormedCheckpoint : public Checkpoint {
 public:
  explicit NormedCheckpoint(std::unique_ptr<Checkpoint> checkpoint)
      : checkpoint_(std::move(checkpoint)) {}

  static float Norm(int layer, int64_t column) {
    if (layer == 0 && column == 5) return 0;
    return static_cast<float>(1 + layer + column % 3);
  }

  const ModelConfig& config() const override { return checkpoint_->config(); }
  const GenerationDefaults& generation() const override { return checkpoint_->generation(); }
  const std::string& directory() const override { return checkpoint_->directory(); }
  bool Has(DenseRole role, int layer) const override { return checkpoint_->Has(role, layer); }
  backend::DType DenseType(DenseRole role, int layer) const override {
    return checkpoint_->DenseType(role, layer);
  }
  absl::StatusOr<HostTensor> ReadDense(DenseRole role, int layer) const override {
    auto tensor = checkpoint_->ReadDense(role, layer);
    if (!tensor.ok() || role != DenseRole::kFfnNorm) return tensor;
    for (int64_t i = 0; i < tensor->view.num_elements(); ++i) {
      tensor->view.As<BFloat16>()[i] = backend::ToBFloat16(Norm(layer, i));
    }
    return tensor;
  }
  const ExpertSource& experts() const override { return checkpoint_->experts(); }

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
};

// Layer 1 has no experts.
constexpr char kConfig[] = R"({
  "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 64, "vocab_size": 512,
  "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 4096,
  "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
  "shared_expert_intermediate_size": 40, "mlp_only_layers": [1], "intermediate_size": 64})";

TEST(ReadNextRoutersTest, ScalesTheRouterOfTheNextLayerWithExperts) {
  const TemporaryDirectory directory;
  directory.Write("config.json", kConfig);
  auto opened =
      OpenCheckpoint({.directory = directory.path(), .load_format = LoadFormat::kDummy, .seed = 3});
  ASSERT_TRUE(opened.ok()) << opened.status();
  const NormedCheckpoint checkpoint(*std::move(opened));
  const auto routers = ReadNextRouters(checkpoint);
  ASSERT_TRUE(routers.ok()) << routers.status();

  ASSERT_EQ((*routers)->size(), 4u);
  EXPECT_LT((**routers)[1].layer, 0);
  EXPECT_LT((**routers)[3].layer, 0);
  for (const auto& [layer, next] : {std::pair(0, 2), std::pair(2, 3)}) {
    const backend::NextRouter& router = (**routers)[layer];
    EXPECT_EQ(router.layer, next);
    const auto stored = checkpoint.ReadDense(DenseRole::kRouter, next);
    ASSERT_TRUE(stored.ok());
    ASSERT_EQ(static_cast<int64_t>(router.weights.size()), stored->view.num_elements());
    for (size_t i = 0; i < router.weights.size(); ++i) {
      const auto column = static_cast<int64_t>(i % 64);
      const float norm = NormedCheckpoint::Norm(layer, column);
      const float scale = norm == 0 ? 0 : NormedCheckpoint::Norm(next, column) / norm;
      const float want = backend::ToFloat(stored->view.As<BFloat16>()[i]) * scale;
      EXPECT_NEAR(backend::ToFloat(router.weights[i]), want, std::abs(want) / 200);
    }
  }
}

}  // namespace
}  // namespace moed::model
