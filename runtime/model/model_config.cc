#include "runtime/model/model_config.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/model/families/family.h"
#include "runtime/model/json.h"
#include "runtime/model/json_fields.h"
#include "runtime/model/rope_config.h"

namespace moed::model {
namespace {

// Beyond every model there is, and small enough that products of sizes fit in 64 bits.
constexpr IntRange kHidden = {1, 1 << 18};
constexpr IntRange kVocabulary = {1, 1 << 24};
constexpr IntRange kLayers = {1, 1024};
constexpr IntRange kHeads = {1, 4096};
constexpr IntRange kHeadDim = {2, 1024};
constexpr IntRange kPositions = {1, int64_t{1} << 30};
constexpr double kMaxExpertBytes = 1e15;

const Family* FindFamilyOf(JsonFields& top, JsonFields& text) {
  const std::vector<std::string> architectures = top.Strings("architectures");
  const std::string architecture = architectures.empty() ? "" : architectures[0];
  const Family* family = FindFamily(architecture, top.String({"model_type"}, ""));
  if (family == nullptr) family = FindFamily("", text.String({"model_type"}, ""));
  if (family == nullptr) {
    const std::string named =
        architecture.empty() ? top.String({"model_type"}, "without a name") : architecture;
    top.Fail(absl::StrCat("model family ", named.substr(0, 80), " is not supported; supported are ",
                          FamilyNames()));
  }
  return family;
}

void CheckUnsupported(JsonFields& fields) {
  if (fields.Has("quantization_config")) {
    fields.Fail(
        "quantized weights (quantization_config) are not supported; give a bf16, f16 or "
        "f32 checkpoint");
  }
  const std::string activation = fields.String({"hidden_act"}, "silu");
  if (activation != "silu" && activation != "swish") {
    fields.Fail(absl::StrCat("activation ", activation.substr(0, 40),
                             " (hidden_act) is not supported; silu is"));
  }
}

void ReadHeads(JsonFields& fields, ModelConfig* config) {
  config->query_heads = static_cast<int>(fields.Int({"num_attention_heads"}, kHeads));
  config->kv_heads =
      static_cast<int>(fields.Int({"num_key_value_heads"}, kHeads, config->query_heads));
  if (config->query_heads % config->kv_heads != 0) {
    fields.Fail(absl::StrCat("num_attention_heads ", config->query_heads,
                             " is no multiple of num_key_value_heads ", config->kv_heads));
  }
  if (fields.Has("head_dim")) {
    config->head_dim = static_cast<int>(fields.Int({"head_dim"}, kHeadDim));
    return;
  }
  const int64_t head_dim = config->hidden / config->query_heads;
  if (config->hidden % config->query_heads != 0 || head_dim < kHeadDim.min ||
      head_dim > kHeadDim.max) {
    fields.Fail(absl::StrCat("hidden_size ", config->hidden, " over num_attention_heads ",
                             config->query_heads, " gives no head_dim, and none is set"));
  }
  config->head_dim = static_cast<int>(std::clamp(head_dim, kHeadDim.min, kHeadDim.max));
}

void ReadDecoder(JsonFields& fields, const Family& family, ModelConfig* config) {
  config->family = family.model_type;
  config->hidden = fields.Int({"hidden_size"}, kHidden);
  config->vocab_size = fields.Int({"vocab_size"}, kVocabulary);
  config->layers.resize(fields.Int({"num_hidden_layers"}, kLayers));
  config->max_positions = fields.Int({"max_position_embeddings"}, kPositions);
  config->norm_epsilon =
      static_cast<float>(fields.Number({"rms_norm_eps"}, {1e-12, 1}, family.default_norm_epsilon));
  config->tie_embeddings = fields.Bool("tie_word_embeddings", false);
  ReadHeads(fields, config);
  config->rope =
      ReadRopeConfig(fields, config->head_dim, config->max_positions, family.default_rope_theta);
  if (config->rope.type == RopeType::kYarn) {
    const double stretched =
        static_cast<double>(config->rope.original_max_positions) * config->rope.factor;
    config->max_positions =
        std::max(config->max_positions,
                 static_cast<int64_t>(std::min(stretched, static_cast<double>(kPositions.max))));
  }
}

void CheckExperts(JsonFields& fields, const ModelConfig& config) {
  if (config.num_moe_layers() == 0) fields.Fail("no layer has experts");
  const double bytes = 6.0 * static_cast<double>(config.hidden) *
                       static_cast<double>(config.expert_intermediate) * config.router.num_experts *
                       config.num_moe_layers();
  if (bytes > kMaxExpertBytes) {
    fields.Fail(absl::StrCat("hidden_size, expert width, experts and layers make ", bytes,
                             " bytes of experts; there must be an error among them"));
  }
}

}  // namespace

int ModelConfig::num_moe_layers() const {
  return static_cast<int>(std::count_if(layers.begin(), layers.end(),
                                        [](const LayerConfig& layer) { return layer.is_moe; }));
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text, const std::string& file) {
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(text, file);
  if (!json.ok()) return json.status();
  absl::Status status;
  JsonFields top(*json, file, &status);
  JsonFields fields = top.Has("text_config") ? top.Object("text_config") : top;
  const Family* family = FindFamilyOf(top, fields);
  if (family == nullptr) return status;
  ModelConfig config;
  CheckUnsupported(fields);
  ReadDecoder(fields, *family, &config);
  family->read_config(fields, &config);
  CheckExperts(fields, config);
  if (!status.ok()) return status;
  return config;
}

}  // namespace moed::model
