// What waits to be written to one client of moed.v1.Inference: bounded deltas (DeltaQueue), then
// one message with all finishes. Owned by a reactor, which guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "proto/moed/v1/inference.pb.h"
#include "runtime/engine/request.h"
#include "server/delta_queue.h"

namespace moed::server {

class StreamBuffer {
 public:
  using Response = v1::GenerateResponse;
  struct Options {
    bool with_logprobs = false;
    int32_t first_prompt_token = 0;  // for PromptLogprobs
    std::string request_id = {};     // on every message
    size_t max_messages = 32;        // deltas queued before they are joined
    size_t max_bytes = 1 << 20;      // of tokens and text waiting
  };
  explicit StreamBuffer(const Options& options)
      : options_(options), deltas_(options.max_messages, options.max_bytes) {}
  static Options OptionsFor(const engine::Request& request);

  // False if the limit of bytes is passed; the delta is dropped.
  bool Push(engine::Delta delta) { return deltas_.Push(std::move(delta)); }
  void PushPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs);
  void PushSequenceFinish(engine::SequenceFinish finish);
  // The last event: usage and all finishes so far.
  void PushFinished(const engine::Usage& usage);
  void Clear();

  bool empty() const;
  // Moves the oldest event into `message`, whose allocations are reused. False if there is none.
  bool Take(v1::GenerateResponse* message);

 private:
  Options options_;
  DeltaQueue deltas_;
  std::optional<std::vector<std::vector<model::TokenLogprob>>> prompt_logprobs_;
  std::vector<engine::SequenceFinish> finishes_;
  std::optional<engine::Usage> usage_;
};

}  // namespace moed::server
