#include "tests/runtime/model/test_model.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string_view>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/read_next_routers.h"
#include "runtime/model/recoded_experts.h"
#include "runtime/model/weights.h"

namespace moed::testing {

using model::LogitsOf;
using model::SequenceChunk;
using model::StepInput;

namespace {

// Smaller than most prompts of the golden cases, so that both kinds of step occur.
constexpr int kCudaDeviceTokens = 16;
// Larger steps use the activations of passes.
constexpr int kMaxTokensBesidePass = 8;

}  // namespace

// MOED_TEST_DEVICE=cuda runs the tests of bound (b) on a GPU.
bool TestsUseCuda() {
  const char* device = std::getenv("MOED_TEST_DEVICE");
  return device != nullptr && std::string_view(device) == "cuda";
}

absl::StatusOr<std::unique_ptr<TestModel>> TestModel::Create(const TestModelOptions& options) {
  std::unique_ptr<TestModel> test(new TestModel());
  auto checkpoint = model::OpenCheckpoint(
      {.directory = options.directory, .load_format = options.load_format, .seed = 1});
  if (!checkpoint.ok()) return checkpoint.status();
  test->checkpoint_ = *std::move(checkpoint);
  auto backend = TestsUseCuda() ? backend::CreateCudaBackend({})
                                : backend::CreateCpuBackend({.num_threads = options.num_threads});
  if (!backend.ok()) return backend.status();
  test->backend_ = *std::move(backend);

  auto weights = model::LoadWeights(*test->checkpoint_, *test->backend_, nullptr);
  if (!weights.ok()) return weights.status();
  model::ExpertStoreOptions store = {
      .num_slots = options.num_slots,
      .policy = options.policy,
      .io_threads = 2,
      .device_tokens = TestsUseCuda() ? kCudaDeviceTokens : options.device_tokens,
      .cold_path = options.cold_path,
      .cold_threads = 2};
  auto next_routers = model::ReadNextRouters(*test->checkpoint_);
  if (!next_routers.ok()) return next_routers.status();
  store.next_routers = *std::move(next_routers);
  const model::ExpertSource& stored = test->checkpoint_->experts();
  if (options.encode_experts) {
    const auto format = model::SampleBf12Format(test->config(), stored);
    if (!format.ok()) return format.status();
    test->encoded_ = std::make_unique<model::EncodedExperts>(stored, *format);
  }
  const model::ExpertSource& source = options.encode_experts ? *test->encoded_ : stored;
  auto experts = model::ExpertStore::Create(test->config(), store, source, *test->backend_);
  if (absl::IsUnimplemented(experts.status())) {
    store.device_tokens = 0;
    experts = model::ExpertStore::Create(test->config(), store, source, *test->backend_);
  }
  if (!experts.ok()) return experts.status();
  test->experts_ = *std::move(experts);
  if (options.warm) {
    if (absl::Status status = test->experts_->Warm(nullptr); !status.ok()) return status;
  }
  // A tile of 5 rows, so that logits come from several tiles.
  auto transformer = model::Transformer::Create(
      test->config(),
      {.max_num_batched_tokens = options.max_num_batched_tokens,
       .num_kv_blocks = options.num_kv_blocks,
       .logit_rows = 5,
       .max_tokens_beside_pass = std::max(kMaxTokensBesidePass, store.device_tokens)},
      *std::move(weights), *test->experts_, *test->backend_);
  if (!transformer.ok()) return transformer.status();
  test->transformer_ = *std::move(transformer);
  // Not in rising order, as after a while of serving.
  for (int i = 0; i < options.num_kv_blocks; ++i) {
    test->blocks_.push_back((i * 37 + 11) % options.num_kv_blocks);
  }
  return test;
}

absl::StatusOr<std::vector<std::vector<float>>> TestModel::Logits(
    std::span<const TestSequence> sequences) {
  std::vector<std::vector<float>> logits(sequences.size());
  std::vector<size_t> progress(sequences.size(), 0);
  const auto unfinished = [&] {
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (progress[i] < sequences[i].token_ids.size()) return true;
    }
    return false;
  };
  for (size_t step = 0; unfinished(); ++step) {
    absl::Status status = RunStep(sequences, step, &progress, &logits);
    if (!status.ok()) return status;
  }
  return logits;
}

absl::Status TestModel::RunStep(std::span<const TestSequence> sequences, size_t step,
                                std::vector<size_t>* progress,
                                std::vector<std::vector<float>>* logits) {
  StepInput input;
  std::vector<size_t> row_sequence;
  size_t first_block = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& tokens = sequences[i].token_ids;
    const size_t num_blocks = (tokens.size() + model::kKvBlockTokens - 1) / model::kKvBlockTokens;
    ABSL_RAW_CHECK(first_block + num_blocks <= blocks_.size(), "too few KV blocks for this test");
    const std::vector<int>& chunks = sequences[i].chunk_tokens;
    const size_t count =
        std::min<size_t>(chunks[std::min(step, chunks.size() - 1)], tokens.size() - (*progress)[i]);
    if (count > 0) {
      const auto begin = tokens.begin() + static_cast<ptrdiff_t>((*progress)[i]);
      input.token_ids.insert(input.token_ids.end(), begin, begin + static_cast<ptrdiff_t>(count));
      input.chunks.push_back({.num_tokens = static_cast<int>(count),
                              .context_start = static_cast<int>((*progress)[i]),
                              .kv_blocks = std::span(blocks_).subspan(first_block, num_blocks)});
      row_sequence.insert(row_sequence.end(), count, i);
      (*progress)[i] += count;
    }
    first_block += num_blocks;
  }

  std::vector<model::ExpertShare> shares;
  std::vector<int32_t> rows(row_sequence.size());
  for (size_t row = 0; row < rows.size(); ++row) rows[row] = static_cast<int32_t>(row);
  absl::Status status = transformer_->Forward(input);
  if (status.ok()) {
    status = transformer_->ForEachLogits(LogitsOf::kStep, rows,
                                         [&](size_t row, std::span<const float> values) {
                                           std::vector<float>& all = (*logits)[row_sequence[row]];
                                           all.insert(all.end(), values.begin(), values.end());
                                         });
  }
  if (status.ok()) status = transformer_->EndStep(&shares);
  AddShares(shares);
  return status;
}

void TestModel::AddShares(std::span<const model::ExpertShare> shares) {
  for (const model::ExpertShare& share : shares) {
    share_total_.hits += share.hits;
    share_total_.misses += share.misses;
    share_total_.bytes_paged += share.bytes_paged;
    share_total_.stall_seconds += share.stall_seconds;
  }
}

StepInput TestModel::InputOf(const TestSequence& sequence, size_t begin, size_t count,
                             size_t first_block) const {
  const size_t num_blocks =
      (sequence.token_ids.size() + model::kKvBlockTokens - 1) / model::kKvBlockTokens;
  ABSL_RAW_CHECK(first_block + num_blocks <= blocks_.size(), "too few KV blocks for this test");
  const auto first = sequence.token_ids.begin() + static_cast<ptrdiff_t>(begin);
  return {.token_ids = {first, first + static_cast<ptrdiff_t>(count)},
          .chunks = {{.num_tokens = static_cast<int>(count),
                      .context_start = static_cast<int>(begin),
                      .kv_blocks = std::span(blocks_).subspan(first_block, num_blocks)}}};
}

absl::StatusOr<std::vector<std::vector<float>>> TestModel::LogitsBesidePass(
    const TestSequence& pass, const TestSequence& beside, int layers) {
  std::vector<std::vector<float>> logits(2);
  std::vector<model::ExpertShare> shares;
  const auto append_to = [&](std::vector<float>* all) {
    return [all](size_t, std::span<const float> values) {
      all->insert(all->end(), values.begin(), values.end());
    };
  };
  size_t progress = 0;
  const auto step_beside = [&](size_t count) -> absl::Status {
    const StepInput input = InputOf(beside, progress, count, blocks_.size() / 2);
    progress += count;
    std::vector<int32_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    absl::Status status = transformer_->Forward(input);
    if (status.ok()) {
      status = transformer_->ForEachLogits(LogitsOf::kStep, rows, append_to(&logits[1]));
    }
    if (status.ok()) status = transformer_->EndStep(&shares);
    AddShares(shares);
    return status;
  };
  absl::Status status = step_beside(beside.chunk_tokens.front());
  const StepInput input = InputOf(pass, 0, pass.token_ids.size(), 0);
  transformer_->BeginPass(input);
  while (status.ok() && transformer_->pass_layers_left() > 0) {
    status = transformer_->AdvancePass(layers);
    if (status.ok() && progress < beside.token_ids.size()) status = step_beside(1);
  }
  while (status.ok() && progress < beside.token_ids.size()) status = step_beside(1);
  std::vector<int32_t> rows(pass.token_ids.size());
  std::iota(rows.begin(), rows.end(), 0);
  if (status.ok()) {
    status = transformer_->ForEachLogits(LogitsOf::kPass, rows, append_to(&logits[0]));
  }
  transformer_->EndPass(&shares);
  AddShares(shares);
  if (!status.ok()) return status;
  return logits;
}

absl::Status TestModel::AbandonPass(const TestSequence& pass, int layers) {
  const StepInput input = InputOf(pass, 0, pass.token_ids.size(), 0);
  transformer_->BeginPass(input);
  absl::Status status = transformer_->AdvancePass(layers);
  std::vector<model::ExpertShare> shares;
  transformer_->EndPass(&shares);
  AddShares(shares);
  return status;
}

}  // namespace moed::testing
