// For tests of rows that a GPU samples: rows of random logits, what is asked of them, and the
// host's sampler, whose tokens the GPU's must be.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/row_sampler.h"
#include "runtime/model/sampler.h"

namespace moed::backend {

inline constexpr int kMaxRows = 64;
// A real model's, and sizes that no block, warp or vector divides.
inline constexpr int kVocabularies[] = {1, 8, 1000, 4099, 151936, 200003};

std::vector<float> RandomRow(int vocab_size, uint32_t seed, float deviation = 3.0f);
// As RandomRow, of few different values.
std::vector<float> RowWithTies(int vocab_size, uint32_t seed);

// A row and what is asked of it.
struct SampledCase {
  std::vector<float> logits;
  model::SamplerState state;
};

class SampledRowsTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // For rows of this size; false, and the test is skipped, if the GPU samples none.
  bool Create(int vocab_size);

  // The device's answers for `asked`, rows of `logits` [any, V].
  std::vector<SampledRow> Ask(const std::vector<float>& logits,
                              const std::vector<RowSampling>& asked,
                              const std::vector<LogitAdjustment>& adjustments);
  std::vector<SampledRow> Ask(const std::vector<SampledCase>& cases);
  model::ChunkResult OnHost(const std::vector<float>& logits, const model::SamplerState& state);

  // Tokens must be the host's; those that are not are counted.
  void Compare(const std::vector<SampledCase>& cases);
  void ExpectLogprobs(const SampledRow& got, const model::ChunkResult& want, int logprobs) const;
  // At most one token in `one_in` may differ, for a draw beside a boundary.
  void ExpectFewDisagreements(int one_in);

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<RowSampler> sampler_;
  bool sampled_on_host_ = false;
  int vocab_size_ = 0;
  int compared_ = 0;
  int disagreements_ = 0;

 private:
  void Report(const SampledCase& one, int got, int want) const;
};

}  // namespace moed::backend
