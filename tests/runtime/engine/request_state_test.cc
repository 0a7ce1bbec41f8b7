#include "runtime/engine/request_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "tests/runtime/engine/recording_sink.h"

namespace moed::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

RequestState Make(Request request, int64_t max_sequence_tokens = 100) {
  const std::vector<int32_t> eos = {kEos};
  return RequestState(std::move(request), eos, max_sequence_tokens, nullptr);
}

TEST(RequestStateTest, CopiesTokensFromPromptAndOutput) {
  RequestState request = Make(TestRequest({10, 11, 12}, 10, {}));
  SequenceState& sequence = request.sequences[0];
  for (int32_t token : {20, 21, 22}) request.Accept(sequence, token);
  const struct {
    int start, count;
    std::vector<int32_t> expected;
  } cases[] = {
      {0, 3, {10, 11, 12}}, {1, 1, {11}},         {0, 6, {10, 11, 12, 20, 21, 22}},
      {2, 2, {12, 20}},     {3, 3, {20, 21, 22}}, {5, 1, {22}},
  };
  for (const auto& c : cases) {
    std::vector<int32_t> tokens;
    request.CopyTokens(sequence, c.start, c.count, &tokens);
    EXPECT_EQ(tokens, c.expected) << c.start << "+" << c.count;
  }
}

TEST(RequestStateTest, ForbidsEndTokensUntilMinTokensAreThere) {
  Request wanted = TestRequest({10}, 10, {});
  wanted.min_tokens = 2;
  wanted.stop_token_ids = {30};
  RequestState request = Make(wanted);
  SequenceState& sequence = request.sequences[0];
  EXPECT_THAT(sequence.sampler.forbidden(), UnorderedElementsAre(kEos, 30));
  request.Accept(sequence, 20);
  EXPECT_THAT(sequence.sampler.forbidden(), UnorderedElementsAre(kEos, 30));
  request.Accept(sequence, 20);
  EXPECT_THAT(sequence.sampler.forbidden(), IsEmpty());
  EXPECT_EQ(request.Accept(sequence, 30), FinishReason::kStop);
}

TEST(RequestStateTest, TheEndTokenWinsOverTheLimit) {
  RequestState request = Make(TestRequest({10}, 1, {}));
  EXPECT_EQ(request.Accept(request.sequences[0], kEos), FinishReason::kStop);
}

TEST(RequestStateTest, SequencesHaveUnrelatedSeedsOfWhichTheFirstIsTheRequests) {
  Request wanted = TestRequest({10}, 1, {});
  wanted.n = 4;
  wanted.sampling.seed = 77;
  RequestState request = Make(wanted);
  std::set<uint64_t> seeds;
  for (const SequenceState& sequence : request.sequences) {
    seeds.insert(sequence.sampler.params().seed);
  }
  EXPECT_EQ(seeds.size(), 4u);
  EXPECT_EQ(request.sequences[0].sampler.params().seed, 77u);
  // Neighbouring request seeds share no sequence.
  for (int index = 1; index < 4; ++index) EXPECT_FALSE(seeds.contains(SequenceSeed(78, index)));
}

}  // namespace
}  // namespace moed::engine
