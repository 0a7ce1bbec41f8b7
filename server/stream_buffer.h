// What waits to be written to one streaming client. While the client keeps up, each delta is a
// message; when it lags, deltas of one sequence are joined, so that messages stay few, and past a
// limit of bytes the buffer refuses more. Owned by a reactor, which guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "proto/moed/v1/inference.pb.h"
#include "runtime/engine/request.h"

namespace moed::server {

class StreamBuffer {
 public:
  struct Options {
    bool with_logprobs = false;
    int32_t first_prompt_token = 0;  // for PromptLogprobs
    size_t max_messages = 32;        // deltas queued before they are joined
    size_t max_bytes = 1 << 20;      // of tokens and text waiting
  };
  explicit StreamBuffer(const Options& options) : options_(options) {}

  // False if the limit of bytes is passed; the delta is dropped.
  bool Push(engine::Delta delta);
  void PushPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs);
  void PushSequenceFinish(engine::SequenceFinish finish);
  // The last event: usage and all finishes so far.
  void PushFinished(const engine::Usage& usage);
  void Clear();

  bool empty() const;
  // Moves the oldest event into `message`, whose allocations are reused. False if there is none.
  bool Take(v1::GenerateResponse* message);

 private:
  bool Join(engine::Delta& delta);

  Options options_;
  std::deque<engine::Delta> deltas_;
  size_t bytes_ = 0;  // of deltas_
  std::optional<std::vector<std::vector<model::TokenLogprob>>> prompt_logprobs_;
  std::vector<engine::SequenceFinish> finishes_;
  std::optional<engine::Usage> usage_;
};

}  // namespace moed::server
