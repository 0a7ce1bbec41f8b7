#include "runtime/engine/output_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/runtime/engine/recording_sink.h"

namespace moed::engine {
namespace {

using ::testing::ElementsAre;

class OutputStreamTest : public ::testing::Test {
 protected:
  OutputStreamTest() {
    Request request = TestRequest({1}, 10, sink_);
    request.n = 2;
    stream_ = std::make_unique<OutputStream>(request, nullptr);
  }
  void Push(int index, int32_t id, std::optional<FinishReason> finish = {}) {
    stream_->Push(index, {.token = {id}, .finish = finish}, &counts_);
  }

  std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::unique_ptr<OutputStream> stream_;
  OutputCounts counts_;
};

TEST_F(OutputStreamTest, JoinsWhatWasPushedBetweenFlushes) {
  Push(1, 5);
  Push(1, 6);
  Push(0, 7);
  stream_->Flush(1);
  EXPECT_THAT(sink_->Ids(1), ElementsAre(5, 6));
  EXPECT_TRUE(sink_->Ids(0).empty());
  stream_->Flush(1);  // nothing new: no empty delta
  EXPECT_THAT(sink_->Ids(1), ElementsAre(5, 6));
}

TEST_F(OutputStreamTest, DropsTokensAfterTheEnd) {
  Push(0, 5, FinishReason::kLength);
  Push(0, 6);
  Push(1, 7, FinishReason::kLength);
  stream_->End(absl::OkStatus(), &counts_);
  stream_->Done(absl::OkStatus(), {});
  EXPECT_THAT(sink_->Ids(0), ElementsAre(5));
  EXPECT_EQ(sink_->usage().completion_tokens, 2);
  EXPECT_EQ(counts_.generation_tokens, 2);
  EXPECT_THAT(counts_.finished, ElementsAre(0, 2, 0, 0));
}

TEST_F(OutputStreamTest, AFailureFinishesNoSequenceAndIsCountedAsFailed) {
  Push(0, 5, FinishReason::kStop);
  Push(1, 6);
  const absl::Status failure = absl::UnavailableError("gone");
  stream_->End(failure, &counts_);
  stream_->Done(failure, {});
  EXPECT_EQ(sink_->AwaitDone(), failure);
  EXPECT_THAT(sink_->Ids(1), ElementsAre(6));
  EXPECT_EQ(sink_->NumFinished(), 1u);
  EXPECT_THAT(counts_.finished, ElementsAre(1, 0, 0, 1));
}

}  // namespace
}  // namespace moed::engine
