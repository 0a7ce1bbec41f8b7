#include "runtime/model/families/read_experts.h"

#include <algorithm>
#include <vector>

namespace moed::model {
namespace {

constexpr IntRange kWidth = {1, 1 << 20};

}  // namespace

void ReadExperts(JsonFields& fields, std::string_view intermediate_key, ModelConfig* config) {
  backend::RouterSpec& router = config->router;
  router.num_experts = static_cast<int>(fields.Int(
      {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}, {1, 8192}));
  router.top_k = static_cast<int>(
      fields.Int({"num_experts_per_tok", "moe_k"}, {1, std::max(router.num_experts, 1)}));
  config->expert_intermediate = fields.Int({intermediate_key}, kWidth);
}

void ReadSparseLayers(JsonFields& fields, ModelConfig* config) {
  const int64_t step = fields.Int({"decoder_sparse_step"}, {1, 1 << 20}, 1);
  const std::vector<int64_t> mlp_only = fields.Ints("mlp_only_layers", {0, 1 << 20});
  for (int i = 0; i < config->num_layers(); ++i) {
    LayerConfig& layer = config->layers[i];
    layer.is_moe =
        (i + 1) % step == 0 && std::find(mlp_only.begin(), mlp_only.end(), i) == mlp_only.end();
    if (!layer.is_moe) layer.dense_intermediate = fields.Int({"intermediate_size"}, kWidth);
  }
}

int ReadSlidingWindow(JsonFields& fields) {
  return static_cast<int>(fields.Int({"sliding_window"}, {0, (int64_t{1} << 31) - 1}, 0));
}

}  // namespace moed::model
