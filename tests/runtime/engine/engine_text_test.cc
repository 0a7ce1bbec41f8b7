// Text and stop strings through the whole engine, with the demo checkpoint's tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/engine/recording_sink.h"
#include "tests/runtime/engine/scripted_runner.h"

namespace moed::engine {
namespace {

constexpr int32_t kEndOfText = 0;  // of the demo tokenizer

class EngineTextTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto tokenizer = text::LoadTokenizer(MOED_SOURCE_DIR "/models/demo");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = tokenizer->release();
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    tokenizer_ = nullptr;
  }

  // A model that says `words` after any prompt of one token, then the end token.
  void Say(const std::string& words) {
    const auto tokens = tokenizer_->Encode(words, false, false);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    said_ = *tokens;
    options_.eos_token_ids = {kEndOfText};
    runner_ = std::make_unique<ScriptedRunner>(options_, [said = said_](const auto& context) {
      return context.size() - 1 < said.size() ? said[context.size() - 1] : kEndOfText;
    });
    engine_ = Engine::Create(options_, runner_.get(), tokenizer_);
  }
  std::shared_ptr<RecordingSink> Finished(Request request) {
    auto sink = SubmitTo(*engine_, std::move(request));
    EXPECT_TRUE(sink->AwaitDone().ok());
    return sink;
  }
  static Request TextRequest(std::vector<std::string> stop = {}) {
    Request request = TestRequest({1}, 0, {});
    request.detokenize = true;
    request.stop = std::move(stop);
    return request;
  }

  static inline text::Tokenizer* tokenizer_ = nullptr;
  EngineOptions options_ = TestOptions();
  std::vector<int32_t> said_;
  std::unique_ptr<ScriptedRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTextTest, SendsTheTextWithoutTheEndTokens) {
  Say("The weather is fine, naïve € 日本.");
  const auto sink = Finished(TextRequest());
  EXPECT_EQ(sink->Text(), "The weather is fine, naïve € 日本.");
  EXPECT_EQ(sink->Ids().back(), kEndOfText);
  EXPECT_EQ(sink->Finish().matched_token, kEndOfText);
  EXPECT_EQ(sink->usage().completion_tokens, static_cast<int64_t>(said_.size()) + 1);
}

TEST_F(EngineTextTest, EndsAtAStopStringAcrossTokens) {
  Say("one two three four five six");
  for (const std::string stop : {"three", "o thr", "e f", "wo three fo"}) {
    const auto sink = Finished(TextRequest({"never said", stop}));
    EXPECT_EQ(sink->Text() + stop,
              std::string("one two three four five six").substr(0, sink->Text().size()) + stop);
    EXPECT_EQ(sink->Finish().reason, FinishReason::kStop);
    EXPECT_EQ(sink->Finish().matched_stop, stop);
    EXPECT_EQ(sink->Finish().matched_token, std::nullopt);
    EXPECT_LT(sink->Ids().size(), said_.size()) << "surplus tokens were streamed";
    EXPECT_EQ(sink->usage().completion_tokens, static_cast<int64_t>(sink->Ids().size()));
  }
}

TEST_F(EngineTextTest, CutsTheTextBeforeTheStopStringUnlessAskedToInclude) {
  Say("one two three four five six");
  EXPECT_EQ(Finished(TextRequest({"ree"}))->Text(), "one two th");
  Request request = TextRequest({"ree"});
  request.include_stop = true;
  EXPECT_EQ(Finished(std::move(request))->Text(), "one two three");
}

TEST_F(EngineTextTest, SendsHeldBackTextWhenTheSequenceEnds) {
  Say("one two three");
  const auto sink = Finished(TextRequest({"threefold"}));
  EXPECT_EQ(sink->Text(), "one two three");
  EXPECT_EQ(sink->Finish().matched_stop, std::nullopt);
}

TEST_F(EngineTextTest, FindsStopStringsWithoutSendingText) {
  Say("one two three four five six");
  Request request = TextRequest({"ree"});
  request.detokenize = false;
  const auto sink = Finished(std::move(request));
  EXPECT_EQ(sink->Text(), "");
  EXPECT_EQ(sink->Finish().matched_stop, "ree");
}

TEST_F(EngineTextTest, LooksForStopStringsOnlyAfterMinTokens) {
  Say("one two three one two three");
  Request request = TextRequest({"two"});
  const std::vector<int32_t> first_half = *tokenizer_->Encode("one two three", false, false);
  request.min_tokens = static_cast<int64_t>(first_half.size());
  EXPECT_EQ(Finished(std::move(request))->Text(), "one two three one ");
}

TEST_F(EngineTextTest, NeverSendsPartOfACharacterExceptAtTheEnd) {
  Say("日本日本日本");
  for (int max_tokens = 1; max_tokens <= static_cast<int>(said_.size()); ++max_tokens) {
    Request request = TextRequest();
    request.max_tokens = max_tokens;
    const std::string text = Finished(std::move(request))->Text();
    const std::vector<int32_t> ids(said_.begin(), said_.begin() + max_tokens);
    EXPECT_EQ(text, *tokenizer_->Decode(ids, true));
  }
}

TEST_F(EngineTextTest, SurplusTokensAfterAStopStringAreNotCounted) {
  Say("one two three four five six");
  const auto sink = Finished(TextRequest({"two"}));
  const EngineSnapshot snapshot = engine_->Snapshot();
  EXPECT_EQ(snapshot.generation_tokens_total, sink->usage().completion_tokens);
  EXPECT_EQ(snapshot.finished_total[static_cast<int>(FinishReason::kStop)], 1);
  EXPECT_EQ(snapshot.running, 0);
  EXPECT_EQ(snapshot.kv_blocks_used, 0);
}

}  // namespace
}  // namespace moed::engine
