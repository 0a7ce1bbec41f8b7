// A checkpoint served in a test: transformer, experts and weights on the CPU backend, with a number
// of expert slots of the test's choice, and logits of whole sequences however they are chunked.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/transformer.h"

namespace moed::testing {

struct TestModelOptions {
  std::string directory;
  model::LoadFormat load_format = model::LoadFormat::kAuto;
  int num_slots = 1 << 30;  // cut to all experts
  std::string policy = "recency-frequency";
  bool warm = false;
  int64_t max_num_batched_tokens = 256;
  int num_kv_blocks = 64;
  int num_threads = 2;
  // Steps of up to this many tokens are device-driven; 0: none, or where MOED_TEST_DEVICE is cuda
  // and the kernels take the experts' shape, 16.
  int device_tokens = 0;
  // bf16 experts are encoded to bf12 as they are read.
  bool encode_experts = false;
  backend::ColdPath cold_path = backend::ColdPath::kLink;
};

// Tokens of one sequence, and how many of them each step takes: the last count repeats.
struct TestSequence {
  std::vector<int32_t> token_ids;
  std::vector<int> chunk_tokens = {1 << 30};
};

// True if MOED_TEST_DEVICE asks for the GPU.
bool TestsUseCuda();

class TestModel {
 public:
  static absl::StatusOr<std::unique_ptr<TestModel>> Create(const TestModelOptions& options);

  // The logits [tokens, V] after every token of every sequence. All sequences run together, a chunk
  // of each in every step, until the longest is done.
  absl::StatusOr<std::vector<std::vector<float>>> Logits(std::span<const TestSequence> sequences);

  // The same of two sequences, of which the second runs beside the first: the first as one pass of
  // slices of `layers` layers, the second, as far as it goes, a token between two slices, after
  // `beside.chunk_tokens[0]` tokens to begin with.
  absl::StatusOr<std::vector<std::vector<float>>> LogitsBesidePass(const TestSequence& pass,
                                                                   const TestSequence& beside,
                                                                   int layers);

  // Begins a pass over all of the sequence, runs some layers, and ends it.
  absl::Status AbandonPass(const TestSequence& pass, int layers);

  const model::ModelConfig& config() const { return checkpoint_->config(); }
  model::ExpertStore& experts() { return *experts_; }
  model::Transformer& transformer() { return *transformer_; }
  backend::Backend& backend() { return *backend_; }
  // Shares of all chunks of all steps so far.
  const model::ExpertShare& share_total() const { return share_total_; }

 private:
  TestModel() = default;
  void AddShares(std::span<const model::ExpertShare> shares);
  // Tokens [begin, begin + count) of a sequence whose blocks start at blocks_[first_block].
  model::StepInput InputOf(const TestSequence& sequence, size_t begin, size_t count,
                           size_t first_block) const;
  absl::Status RunStep(std::span<const TestSequence> sequences, size_t step,
                       std::vector<size_t>* progress, std::vector<std::vector<float>>* logits);

  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::unique_ptr<model::ExpertSource> encoded_;  // null: experts as stored
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<model::ExpertStore> experts_;
  std::unique_ptr<model::Transformer> transformer_;
  std::vector<int32_t> blocks_;  // all KV blocks, dealt to sequences in turn
  model::ExpertShare share_total_;
};

}  // namespace moed::testing
