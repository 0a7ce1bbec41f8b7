#include "runtime/model/cold_path_choice.h"

#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using backend::ColdPath;
using Preference = ColdPathPreference;

constexpr ColdPathCircumstances kCpu = {
    .has_device = false, .expert_bytes = 10, .host_memory_bytes = 10};
constexpr ColdPathCircumstances kGpu = {
    .has_device = true, .expert_bytes = 10, .host_memory_bytes = 10, .cpus = 4};
constexpr ColdPathCircumstances kFewCpus = {
    .has_device = true, .expert_bytes = 10, .host_memory_bytes = 10, .cpus = 3};
constexpr ColdPathCircumstances kSmallHost = {
    .has_device = true, .expert_bytes = 10, .host_memory_bytes = 9};

TEST(ColdPathChoiceTest, FollowsThePreferenceWhereItCan) {
  const struct {
    Preference preference;
    ColdPathCircumstances circumstances;
    std::optional<ColdPath> path;
  } cases[] = {
      {Preference::kAuto, kCpu, std::nullopt},
      {Preference::kPage, kCpu, std::nullopt},
      {Preference::kAuto, kGpu, ColdPath::kHybrid},
      {Preference::kLink, kGpu, ColdPath::kLink},
      {Preference::kAuto, kFewCpus, ColdPath::kLink},
      {Preference::kHybrid, kFewCpus, ColdPath::kHybrid},
      {Preference::kCpu, kGpu, ColdPath::kCpu},
      {Preference::kHybrid, kGpu, ColdPath::kHybrid},
      {Preference::kPage, kGpu, std::nullopt},
      {Preference::kAuto, kSmallHost, std::nullopt},
      {Preference::kPage, kSmallHost, std::nullopt},
  };
  for (const auto& c : cases) {
    const auto path = ChooseColdPath(c.preference, c.circumstances);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(*path, c.path) << ColdPathName(c.path);
  }
}

TEST(ColdPathChoiceTest, RefusesWhatCannotBeAndSaysWhatCan) {
  for (const Preference preference : {Preference::kLink, Preference::kCpu, Preference::kHybrid}) {
    const auto on_cpu = ChooseColdPath(preference, kCpu);
    EXPECT_EQ(on_cpu.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(on_cpu.status().ToString(), testing::HasSubstr("--cold-path"));
    const auto too_small = ChooseColdPath(preference, kSmallHost);
    EXPECT_EQ(too_small.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(too_small.status().ToString(), testing::HasSubstr("10 bytes"));
  }
}

}  // namespace
}  // namespace moed::model
