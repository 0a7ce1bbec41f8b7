#include "runtime/model/families/family.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace moed::model {
namespace {

constexpr const Family* kFamilies[] = {&kQwen3Moe, &kQwen2Moe, &kMixtral, &kOlmoe};

// What Llama's decoder called its tensors, and most after it.
constexpr DenseName kSharedNames[] = {
    {DenseRole::kEmbedding, "model.embed_tokens.weight"},
    {DenseRole::kFinalNorm, "model.norm.weight"},
    {DenseRole::kLmHead, "lm_head.weight"},
    {DenseRole::kAttentionNorm, "model.layers.{layer}.input_layernorm.weight"},
    {DenseRole::kFfnNorm, "model.layers.{layer}.post_attention_layernorm.weight"},
    {DenseRole::kQuery, "model.layers.{layer}.self_attn.q_proj.weight"},
    {DenseRole::kKey, "model.layers.{layer}.self_attn.k_proj.weight"},
    {DenseRole::kValue, "model.layers.{layer}.self_attn.v_proj.weight"},
    {DenseRole::kOutput, "model.layers.{layer}.self_attn.o_proj.weight"},
    {DenseRole::kQueryBias, "model.layers.{layer}.self_attn.q_proj.bias"},
    {DenseRole::kKeyBias, "model.layers.{layer}.self_attn.k_proj.bias"},
    {DenseRole::kValueBias, "model.layers.{layer}.self_attn.v_proj.bias"},
    {DenseRole::kOutputBias, "model.layers.{layer}.self_attn.o_proj.bias"},
    {DenseRole::kQueryNorm, "model.layers.{layer}.self_attn.q_norm.weight"},
    {DenseRole::kKeyNorm, "model.layers.{layer}.self_attn.k_norm.weight"},
    {DenseRole::kRouter, "model.layers.{layer}.mlp.gate.weight"},
    {DenseRole::kMlpGate, "model.layers.{layer}.mlp.gate_proj.weight"},
    {DenseRole::kMlpUp, "model.layers.{layer}.mlp.up_proj.weight"},
    {DenseRole::kMlpDown, "model.layers.{layer}.mlp.down_proj.weight"},
};

constexpr ExpertNames kSharedExpertNames = {
    .gate = "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    .up = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    .down = "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    .all_gate_up = "model.layers.{layer}.mlp.experts.gate_up_proj",
    .all_down = "model.layers.{layer}.mlp.experts.down_proj",
};

void AppendNames(std::span<const DenseName> from, DenseRole role, int layer,
                 std::vector<std::string>* names) {
  for (const DenseName& name : from) {
    if (name.role == role) names->push_back(FillIn(name.pattern, layer, 0));
  }
}

}  // namespace

const Family* FindFamily(std::string_view architecture, std::string_view model_type) {
  for (const Family* family : kFamilies) {
    if (family->architecture == architecture) return family;
  }
  for (const Family* family : kFamilies) {
    if (family->model_type == model_type) return family;
  }
  return nullptr;
}

std::string FamilyNames() {
  return absl::StrJoin(kFamilies, ", ", [](std::string* out, const Family* family) {
    out->append(family->model_type);
  });
}

std::vector<std::string> DenseTensorNames(const Family& family, DenseRole role, int layer) {
  std::vector<std::string> names;
  AppendNames(family.dense_names, role, layer, &names);
  AppendNames(kSharedNames, role, layer, &names);
  return names;
}

std::vector<ExpertNames> ExpertTensorNames(const Family& family) {
  std::vector<ExpertNames> names(family.expert_names.begin(), family.expert_names.end());
  names.push_back(kSharedExpertNames);
  return names;
}

std::string FillIn(std::string_view pattern, int layer, int expert) {
  return absl::StrReplaceAll(
      std::string(pattern), {{"{layer}", absl::StrCat(layer)}, {"{expert}", absl::StrCat(expert)}});
}

}  // namespace moed::model
