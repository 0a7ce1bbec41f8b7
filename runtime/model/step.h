// One step of the engine as the model sees it, and what comes back. Plain data: the engine fills a
// StepInput from the scheduler's batch and reads a StepResult; both are reused from step to step.
// Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/model/sampling.h"

namespace moed::model {

// A token with its log-probability: natural log of the unscaled softmax of its logits.
struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

// One sequence's part of a step.
struct SequenceChunk {
  int num_tokens = 0;     // its tokens in StepInput::token_ids, in order of chunks
  int context_start = 0;  // position of the first of them; everything before is in the KV cache
  std::span<const int32_t> kv_blocks = {};  // in order, covering context_start + num_tokens
  // Set if the chunk ends at the sequence's last known token: its logits are sampled. Null: only
  // the KV cache is filled (all chunks of a prompt but the last).
  SamplerState* sampler = nullptr;
  // Log-probabilities of the prompt tokens that follow each of the chunk's tokens (each given those
  // before it), with this many alternatives; -1: none. The caller sets next_token to the prompt
  // token after the chunk, or -1 if the prompt ends with it. The prompt's first token has none.
  int prompt_logprobs = -1;
  int32_t next_token = -1;
};

struct StepInput {
  std::vector<int32_t> token_ids;
  std::vector<SequenceChunk> chunks;
};

// A request's share of the step's expert traffic. An expert that several sequences of the step
// chose is divided evenly among them, so that shares add up to the totals of the cache.
struct ExpertShare {
  double hits = 0;
  double misses = 0;
  double bytes_paged = 0;
  double stall_seconds = 0;
};

struct ChunkResult {
  // The sampled token, or -1 if the chunk had no sampler.
  int32_t token = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top_logprobs;  // most probable first, as many as the sampler asks
  // In order of the prompt tokens asked for: the token's own, then the alternatives.
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;
  ExpertShare experts;
  // The logits held a NaN: the sequence must end with INTERNAL and its KV must not be reused.
  bool invalid = false;
};

struct StepResult {
  std::vector<ChunkResult> chunks;  // one per StepInput chunk
};

// Runs steps: the transformer, or in tests and benchmarks of the engine a stand-in without weights.
// A long prefill can instead run as a pass: the same computation in slices of a few layers, between
// which steps may run. A pass gives what Run gives for the same input.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // An error is final for the whole runner (a device or a checkpoint file that failed). Beside a
  // pass, at most max_tokens_beside_pass().
  virtual absl::Status Run(const StepInput& input, StepResult* result) = 0;

  // Run in two parts, for who has something to do while a device computes: the first issues what a
  // device does by itself, if there is any, and waits for nothing. Nothing else is asked of the
  // runner in between, and `input` stays as it is.
  virtual absl::Status Begin(const StepInput&) { return absl::OkStatus(); }
  virtual absl::Status Finish(const StepInput& input, StepResult* result) {
    return Run(input, result);
  }

  // Ends what the last step left to be done beside the next one, when none follows at once or
  // something else is asked of the runner first. Errors are final.
  virtual absl::Status Settle() { return absl::OkStatus(); }

  // Changes as a step or a slice advances, at least once a layer: who sees it stand still for long
  // knows that the device or a thread hangs. Safe from any thread.
  virtual int64_t progress() const { return 0; }

  // The layers of a pass; 0: this runner has no passes, and none of what follows is called.
  virtual int pass_layers() const { return 0; }
  virtual int max_tokens_beside_pass() const { return 0; }
  // Begins a pass, of which there is one at most. `input` and its KV blocks must stay as they are
  // until it ends; only a chunk's sampler may become null, and its prompt_logprobs -1.
  virtual absl::Status BeginPass(const StepInput&) { return NoPasses(); }
  // Runs its next `layers` layers, or as many as are left. Nothing of them is under way, and no
  // expert pinned, when it returns.
  virtual absl::Status AdvancePass(int /*layers*/) { return NoPasses(); }
  // Ends a pass all of whose layers have run.
  virtual absl::Status FinishPass(StepResult*) { return NoPasses(); }
  // Ends a pass anywhere: nothing writes to its KV blocks any more. Only ChunkResult::experts is
  // filled in, for what did run.
  virtual void AbandonPass(StepResult*) {}

 protected:
  static absl::Status NoPasses() { return absl::UnimplementedError("this runner has no passes"); }
};

}  // namespace moed::model
