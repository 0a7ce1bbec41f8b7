#include "runtime/engine/pass_pacer.h"

#include <gtest/gtest.h>

namespace moed::engine {
namespace {

TEST(PassPacerTest, JoinsAFewTokensWhileNothingWasMeasured) {
  EXPECT_EQ(PassPacer().MaxJoinedTokens(), 64);
}

TEST(PassPacerTest, JoinsWhatTakesTwoDecodeSteps) {
  PassPacer pacer;
  pacer.ObserveStep(/*decodes=*/0, /*prefill_tokens=*/512, 0.512);  // a millisecond a token
  pacer.ObserveStep(4, 0, 0.010);
  EXPECT_EQ(pacer.MaxJoinedTokens(), 20);
}

TEST(PassPacerTest, LearnsWhatPrefillAddsToAStepOfDecodes) {
  PassPacer pacer;
  pacer.ObserveStep(4, 0, 0.010);
  pacer.ObserveStep(4, 16, 0.012);  // 2 ms more
  EXPECT_EQ(pacer.MaxJoinedTokens(), 160);
}

// As where a layer's experts are streamed: a small prefill costs nearly what a large one does.
TEST(PassPacerTest, KnowsThatASmallPrefillMayCostAsMuchAsALargeOne) {
  PassPacer pacer;
  pacer.ObserveStep(1, 0, 0.010);
  pacer.ObservePass(2048, 0.500);
  EXPECT_GT(pacer.MaxJoinedTokens(), 64);  // not tried yet
  pacer.ObserveStep(1, 64, 0.410);
  EXPECT_LT(pacer.MaxJoinedTokens(), 128);
  pacer.ObserveStep(1, 32, 0.310);
  pacer.ObserveStep(1, 16, 0.210);
  EXPECT_LT(pacer.MaxJoinedTokens(), 16);
}

TEST(PassPacerTest, CorrectsItself) {
  PassPacer pacer;
  pacer.ObserveStep(1, 0, 0.010);
  pacer.ObserveStep(0, 100, 10);  // the first was read from disk
  EXPECT_LT(pacer.MaxJoinedTokens(), 2);
  for (int i = 0; i < 100; ++i) pacer.ObservePass(100, 0.010);
  EXPECT_GE(pacer.MaxJoinedTokens(), 100);
  for (int i = 0; i < 100; ++i) pacer.ObserveStep(8, 0, 0.001);  // decoding got faster
  EXPECT_LT(pacer.MaxJoinedTokens(), 30);
}

TEST(PassPacerTest, ASliceAndItsDecodeStepTakeThreeDecodeStepsAndALayer) {
  PassPacer pacer;
  pacer.ObserveStep(4, 0, 0.010);
  EXPECT_TRUE(pacer.MayGoOn(0.019));
  EXPECT_FALSE(pacer.MayGoOn(0.021));
}

}  // namespace
}  // namespace moed::engine
