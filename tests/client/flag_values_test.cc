#include "client/flag_values.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <vector>

namespace moed::client {
namespace {

TEST(FlagValuesTest, ReadsTokenIds) {
  EXPECT_EQ(ParseTokenIds("").value(), std::vector<int32_t>{});
  EXPECT_EQ(ParseTokenIds("5").value(), (std::vector<int32_t>{5}));
  EXPECT_EQ(ParseTokenIds("5,6, 7").value(), (std::vector<int32_t>{5, 6, 7}));
}

TEST(FlagValuesTest, RefusesWhatIsNoTokenId) {
  for (const char* text : {"5,", ",", "a", "-1", "5;6", "1.5", "99999999999", "5,6,x"}) {
    const auto ids = ParseTokenIds(text);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(FlagValuesTest, ReadsBiases) {
  EXPECT_TRUE(ParseLogitBias("").value().empty());
  EXPECT_EQ(ParseLogitBias("12=-1.5,40=100").value(),
            (std::map<int32_t, float>{{12, -1.5f}, {40, 100.0f}}));
}

TEST(FlagValuesTest, RefusesWhatIsNoBias) {
  for (const char* text : {"12", "12=", "=3", "12=a", "-1=2", "1=2,", "1:2"}) {
    EXPECT_EQ(ParseLogitBias(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace moed::client
