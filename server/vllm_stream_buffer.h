// What waits to be written to one client of vllm.grpc.engine.VllmEngine. Streaming: a chunk for
// each delta, then one `complete` for each sequence as it ends. Not streaming: tokens gather here
// and go out with the `complete` of their sequence. Owned by a reactor, which guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "proto/vllm/engine.pb.h"
#include "runtime/engine/request.h"
#include "server/delta_queue.h"

namespace moed::server {

class VllmStreamBuffer {
 public:
  using Response = vllm::grpc::engine::GenerateResponse;
  struct Options {
    bool stream = false;
    bool with_logprobs = false;
    int n = 1;
    int32_t first_prompt_token = 0;
    uint32_t prompt_tokens = 0;
    size_t max_messages = 32;               // chunks queued before they are joined
    size_t max_bytes = 1 << 20;             // of tokens waiting to be streamed
    size_t max_gathered = size_t{1} << 20;  // tokens and alternatives of an answer in one piece
  };
  explicit VllmStreamBuffer(const Options& options);
  static Options OptionsFor(const engine::Request& request);

  // False if a limit is passed; the delta is dropped.
  bool Push(engine::Delta delta);
  void PushPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs);
  void PushSequenceFinish(engine::SequenceFinish finish);
  void PushFinished(const engine::Usage& /*usage*/) {}
  void Clear();

  bool empty() const { return deltas_.empty() && finishes_.empty(); }
  // Fills `message` with the oldest event. False if there is none.
  bool Take(Response* message);

 private:
  using Chunk = vllm::grpc::engine::GenerateStreamChunk;
  using Complete = vllm::grpc::engine::GenerateComplete;

  void FillChunk(const engine::Delta& delta, Chunk* chunk);
  void FillComplete(const engine::SequenceFinish& finish, Complete* complete);
  // The prompt's log-probabilities go with the first message of each sequence.
  template <typename Message>
  void AddInputLogprobs(int index, Message* message);

  struct Sequence {
    uint32_t num_tokens = 0;
    bool started = false;  // a message of it was taken
    std::vector<engine::TokenWithLogprobs> gathered = {};
  };

  Options options_;
  DeltaQueue deltas_;
  std::vector<Sequence> sequences_;  // [n]
  size_t num_gathered_ = 0;
  std::vector<std::vector<model::TokenLogprob>> prompt_logprobs_;
  std::deque<engine::SequenceFinish> finishes_;
};

}  // namespace moed::server
