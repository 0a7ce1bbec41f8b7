// An OutputSink that keeps what it hears, and the options and requests the engine's tests start
// from.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/engine.h"

namespace moed::engine {

class RecordingSink final : public OutputSink {
 public:
  void OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) override {
    std::lock_guard lock(mutex_);
    EXPECT_TRUE(tokens_.empty()) << "after the first token";
    prompt_logprobs_ = std::move(logprobs);
  }
  void OnDelta(Delta delta) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(done_) << "a delta after the end";
    EXPECT_FALSE(finishes_.contains(delta.index)) << "a delta after the sequence's end";
    for (auto& token : delta.tokens) tokens_[delta.index].push_back(token);
    text_[delta.index] += delta.text;
    changed_.notify_all();
  }
  void OnSequenceFinish(SequenceFinish finish) override {
    std::lock_guard lock(mutex_);
    EXPECT_TRUE(finishes_.emplace(finish.index, finish).second) << "finished twice";
  }
  void OnDone(const absl::Status& status, const Usage& usage) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(done_) << "done twice";
    done_ = true;
    status_ = status;
    usage_ = usage;
    changed_.notify_all();
  }

  const absl::Status& AwaitDone() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_; });
    return status_;
  }
  // Until the first sequence has so many.
  void AwaitTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return tokens_[0].size() >= count; });
  }
  bool done() const {
    std::lock_guard lock(mutex_);
    return done_;
  }

  // After AwaitDone.
  std::vector<int32_t> Ids(int index = 0) const {
    std::vector<int32_t> ids;
    if (!tokens_.contains(index)) return ids;
    for (const TokenWithLogprobs& token : tokens_.at(index)) ids.push_back(token.id);
    return ids;
  }
  const std::vector<TokenWithLogprobs>& Tokens() const { return tokens_.at(0); }
  std::string Text(int index = 0) const { return text_.contains(index) ? text_.at(index) : ""; }
  const SequenceFinish& Finish(int index = 0) const { return finishes_.at(index); }
  size_t NumFinished() const { return finishes_.size(); }
  const Usage& usage() const { return usage_; }
  const std::vector<std::vector<model::TokenLogprob>>& PromptLogprobs() const {
    return prompt_logprobs_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, std::vector<TokenWithLogprobs>> tokens_;
  std::map<int, std::string> text_;
  std::map<int, SequenceFinish> finishes_;
  std::vector<std::vector<model::TokenLogprob>> prompt_logprobs_;
  bool done_ = false;
  absl::Status status_;
  Usage usage_;
};

inline constexpr int32_t kEos = 2;

inline EngineOptions TestOptions() {
  return {.max_num_seqs = 8,
          .max_num_batched_tokens = 32,
          .max_model_len = 128,
          .num_kv_blocks = 64,
          .kv_block_tokens = 16,
          .max_queued_requests = 1000,
          .max_queued_tokens = 100000,
          .vocab_size = 2048,
          .eos_token_ids = {kEos}};
}

// By token ids alone.
inline Request TestRequest(std::vector<int32_t> prompt, int64_t max_tokens,
                           std::shared_ptr<RecordingSink> sink) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.detokenize = false;
  request.sink = std::move(sink);
  return request;
}

// A request that must be taken, with a sink of its own.
inline std::shared_ptr<RecordingSink> SubmitTo(Engine& engine, Request request) {
  auto sink = std::make_shared<RecordingSink>();
  request.sink = sink;
  const absl::Status status = engine.Submit(std::move(request));
  EXPECT_TRUE(status.ok()) << status;
  return sink;
}

}  // namespace moed::engine
