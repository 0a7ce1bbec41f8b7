#include "tests/runtime/model/greedy_tokens.h"

#include "gtest/gtest.h"
#include "runtime/model/sampler.h"
#include "runtime/model/step.h"

namespace moed::testing {

std::vector<int32_t> GreedyTokens(model::ModelRunner& runner, const std::vector<int32_t>& prompt,
                                  int count) {
  const std::vector<int32_t> blocks = {0, 1, 2, 3};
  model::SamplerState sampler({.temperature = 0}, prompt);
  model::StepInput input;
  input.token_ids = prompt;
  input.chunks.push_back(
      {.num_tokens = static_cast<int>(prompt.size()), .kv_blocks = blocks, .sampler = &sampler});
  std::vector<int32_t> tokens;
  for (int step = 0; step < count; ++step) {
    model::StepResult result;
    const absl::Status status = runner.Run(input, &result);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) break;
    tokens.push_back(result.chunks[0].token);
    model::SequenceChunk& chunk = input.chunks[0];
    chunk.context_start += chunk.num_tokens;
    chunk.num_tokens = 1;
    input.token_ids = {tokens.back()};
  }
  return tokens;
}

}  // namespace moed::testing
