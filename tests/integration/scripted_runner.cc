#include "tests/integration/scripted_runner.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace moed::server {
namespace {

constexpr int64_t kMaxModelLen = int64_t{1} << 20;
constexpr int kVocabSize = 1024;
constexpr int kBlockTokens = 16;
constexpr absl::Duration kBeat = absl::Milliseconds(20);

}  // namespace

absl::Status ScriptedRunner::Run(const model::StepInput& input, model::StepResult* result) {
  absl::MutexLock lock(&mutex_, absl::Condition(&open_));
  if (!failure_.ok()) return failure_;
  for (absl::Duration left = step_time_; left > absl::ZeroDuration(); left -= kBeat) {
    absl::SleepFor(std::min(left, kBeat));
    heartbeat_.Beat();
  }
  result->chunks.assign(input.chunks.size(), {});
  for (size_t i = 0; i < input.chunks.size(); ++i) {
    const model::SequenceChunk& chunk = input.chunks[i];
    if (chunk.sampler == nullptr) continue;
    result->chunks[i].token = TokenAfter(chunk.context_start + chunk.num_tokens);
    chunk.sampler->Accept(result->chunks[i].token);
  }
  return absl::OkStatus();
}

void ScriptedRunner::SetGate(bool open) {
  absl::MutexLock lock(&mutex_);
  open_ = open;
}

void ScriptedRunner::SetStepTime(absl::Duration step_time) {
  absl::MutexLock lock(&mutex_);
  step_time_ = step_time;
}

void ScriptedRunner::FailWith(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  failure_ = status;
}

ModelLoader ScriptedLoader(ScriptedRunner** runner) {
  auto scripted = std::make_shared<std::unique_ptr<ScriptedRunner>>(new ScriptedRunner);
  *runner = scripted->get();
  return [scripted](const Options& options) -> absl::StatusOr<std::unique_ptr<ServedModel>> {
    auto served = std::make_unique<ServedModel>();
    served->name = "scripted";
    served->description.max_model_len = kMaxModelLen;
    served->description.vocab_size = kVocabSize;
    served->description.num_layers = 1;
    served->description.moe_layers = {true};
    served->description.kv_block_tokens = kBlockTokens;
    served->experts = [] {
      auto snapshot = std::make_shared<model::ExpertSnapshot>();
      snapshot->cache.layers.resize(1);
      return snapshot;
    };
    served->runner = std::move(*scripted);
    served->engine = engine::Engine::Create(
        {.max_num_seqs = options.max_num_seqs,
         .max_num_batched_tokens =
             options.max_num_batched_tokens > 0 ? options.max_num_batched_tokens : 512,
         .max_model_len = kMaxModelLen,
         .num_kv_blocks = 4 * kMaxModelLen / kBlockTokens,
         .kv_block_tokens = kBlockTokens,
         .max_queued_requests = options.max_queued_requests,
         .max_queued_tokens = options.max_queued_tokens,
         .vocab_size = kVocabSize,
         .eos_token_ids = {0}},
        served->runner.get(), /*tokenizer=*/nullptr);
    return served;
  };
}

}  // namespace moed::server
