// What sets one family of checkpoints apart: how it reads its config, and how its tensors are
// called. A family is one file here and one line in family.cc. Constant data; any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/dense_role.h"
#include "runtime/model/json_fields.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// The name of a dense tensor; "{layer}" stands for the layer's index.
struct DenseName {
  DenseRole role;
  std::string_view pattern;
};

// Names of an expert's matrices, where "{layer}" and "{expert}" stand for indices: one tensor each,
// gate and up [I, H], down [H, I]; or all experts of a layer in two tensors.
struct ExpertNames {
  std::string_view gate;
  std::string_view up;
  std::string_view down;
  std::string_view all_gate_up;  // [E, 2 * I, H], an expert's gate rows before its up rows
  std::string_view all_down;     // [E, H, I]
};

struct Family {
  std::string_view model_type;    // "qwen3_moe", of config.json and our name of it
  std::string_view architecture;  // "Qwen3MoeForCausalLM"
  double default_rope_theta = 10000;
  double default_norm_epsilon = 1e-6;
  // Sets what the common part of the config does not: flags, experts, router, kinds of layers.
  // config->layers has its length already. Mistakes go to the fields' status.
  void (*read_config)(JsonFields& fields, ModelConfig* config) = nullptr;
  // Its own names, tried before those that most decoders share; the first that the checkpoint
  // holds counts.
  std::span<const DenseName> dense_names = {};
  std::span<const ExpertNames> expert_names = {};
};

extern const Family kQwen3Moe;
extern const Family kQwen2Moe;
extern const Family kMixtral;
extern const Family kOlmoe;

// By `architectures[0]`, then by `model_type`; null if neither is known.
const Family* FindFamily(std::string_view architecture, std::string_view model_type);
// "qwen3_moe, qwen2_moe, ...", for messages.
std::string FamilyNames();

// The names a checkpoint of `family` may use for `role`, most likely first.
std::vector<std::string> DenseTensorNames(const Family& family, DenseRole role, int layer);
// The ways in which it may name its experts, most likely first.
std::vector<ExpertNames> ExpertTensorNames(const Family& family);
// `pattern` with the indices in place.
std::string FillIn(std::string_view pattern, int layer, int expert);

}  // namespace moed::model
