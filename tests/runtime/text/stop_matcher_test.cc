#include "runtime/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moed::text {
namespace {

struct Outcome {
  std::string text;
  std::optional<std::string> matched;
  bool operator==(const Outcome&) const = default;
};

// What a reader of the whole text would see: the stop that is complete first, then the longest.
Outcome Reference(std::string_view text, const std::vector<std::string>& stops, bool include_stop) {
  for (size_t end = 0; end <= text.size(); ++end) {
    const std::string* matched = nullptr;
    for (const std::string& stop : stops) {
      if (stop.empty() || !text.substr(0, end).ends_with(stop)) continue;
      if (matched == nullptr || stop.size() > matched->size()) matched = &stop;
    }
    if (matched == nullptr) continue;
    const size_t kept = include_stop ? end : end - matched->size();
    return {std::string(text.substr(0, kept)), *matched};
  }
  return {std::string(text), std::nullopt};
}

Outcome Streamed(std::string_view text, const std::vector<std::string>& stops, bool include_stop,
                 std::mt19937& random) {
  StopMatcher matcher(stops, include_stop);
  Outcome outcome;
  while (!text.empty()) {
    const size_t length = std::min<size_t>(random() % 4, text.size());
    StopMatcher::Result result = matcher.Push(text.substr(0, length));
    text.remove_prefix(length);
    outcome.text += result.text;
    if (result.matched) {
      outcome.matched = result.matched;
      return outcome;
    }
  }
  outcome.text += matcher.Finish();
  return outcome;
}

std::string RandomText(std::mt19937& random, size_t max_length) {
  std::string text(random() % (max_length + 1), 'a');
  for (char& c : text) c = "ab"[random() % 2];
  return text;
}

TEST(StopMatcherTest, AgreesWithAReaderOfTheWholeTextForAnyChunks) {
  std::mt19937 random(1);
  for (int round = 0; round < 50000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = RandomText(random, 6);
    const std::string text = RandomText(random, 20);
    const bool include_stop = random() % 2 == 0;
    EXPECT_EQ(Streamed(text, stops, include_stop, random), Reference(text, stops, include_stop))
        << text;
  }
}

TEST(StopMatcherTest, SendsTextAtOnceThatCannotBecomeAStop) {
  StopMatcher matcher({"stop"}, false);
  EXPECT_EQ(matcher.Push("abc s").text, "abc ");
  EXPECT_EQ(matcher.Push("t").text, "");
  EXPECT_EQ(matcher.Push("ay st").text, "stay ");
  EXPECT_EQ(matcher.Finish(), "st");
}

TEST(StopMatcherTest, WithoutStopsHoldsNothing) {
  StopMatcher matcher({"", ""}, false);
  StopMatcher::Result result = matcher.Push("anything");
  EXPECT_EQ(result.text, "anything");
  EXPECT_FALSE(result.matched.has_value());
  EXPECT_EQ(matcher.Finish(), "");
}

}  // namespace
}  // namespace moed::text
