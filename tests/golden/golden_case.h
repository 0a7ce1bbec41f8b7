// The golden data of make_golden.py: tiny checkpoints, and what transformers computes for them in
// float32 with the weights as stored. Read by tests only.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moed::testing {

struct GoldenPrompt {
  std::vector<int32_t> token_ids;  // [n]: the prompt and its greedy continuation
  int prompt_tokens = 0;           // how many of them are the prompt
  // Teacher-forced logits [n - first_logits, vocabulary] of positions first_logits and on. The last
  // prompt token's are always among them.
  int first_logits = 0;
  int vocabulary = 0;
  std::vector<float> logits;
  // [moe_layers, n]: how far each router was from another choice, its k-th largest logit less the
  // next one. A position is as sure as its smallest gap, and those of the positions it attends to.
  int moe_layers = 0;
  std::vector<float> router_gaps;

  // The reference's logits [vocabulary] after `position`; position >= first_logits.
  std::span<const float> LogitsAt(int position) const;
  // Largest less second largest logit there: the greedy choice's distance from another.
  float TopTwoGap(int position) const;
  // The smallest router gap of all MoE layers at `position`.
  float RouterGap(int position) const;
};

struct GoldenCase {
  std::string name;
  std::string checkpoint_directory;
  std::vector<GoldenPrompt> prompts;
};

// The path of a file in tests/golden.
std::string GoldenPath(const std::string& file);

// The names of all cases, "demo" (the checkpoint of models/demo) among them.
std::vector<std::string> GoldenCaseNames();

// NOT_FOUND or DATA_LOSS, naming the file, if it is missing or damaged.
absl::StatusOr<GoldenCase> LoadGoldenCase(const std::string& name);

}  // namespace moed::testing
