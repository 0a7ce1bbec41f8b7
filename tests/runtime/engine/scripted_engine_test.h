// For tests of an engine over a scripted runner: it, what they submit, and what must be left.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/engine.h"
#include "tests/runtime/engine/recording_sink.h"
#include "tests/runtime/engine/scripted_runner.h"

namespace moed::engine {

inline constexpr int32_t kPoison = 9;  // a context that ends with it has invalid logits

class ScriptedEngineTest : public ::testing::Test {
 protected:
  void SetUp() override { Start(); }
  void Start() {
    engine_.reset();
    const auto hash = ScriptedRunner::HashOfContext(options_.vocab_size);
    runner_ = std::make_unique<ScriptedRunner>(options_, [hash](const auto& context) {
      return context.back() == kPoison ? -1 : hash(context);
    });
    engine_ = Engine::Create(options_, runner_.get(), nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(Request request) {
    return SubmitTo(*engine_, std::move(request));
  }
  Request Named(std::string id, int prompt_tokens, int max_tokens) {
    Request request = TestRequest(std::vector<int32_t>(prompt_tokens, 20), max_tokens, {});
    request.id = std::move(id);
    return request;
  }
  void ExpectGaugesAtZero() {
    const EngineSnapshot snapshot = engine_->Snapshot();
    EXPECT_EQ(snapshot.running, 0);
    EXPECT_EQ(snapshot.waiting, 0);
    EXPECT_EQ(snapshot.waiting_tokens, 0);
    EXPECT_EQ(snapshot.kv_blocks_used, 0);
  }

  EngineOptions options_ = TestOptions();
  std::unique_ptr<ScriptedRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace moed::engine
