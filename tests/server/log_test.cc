#include "server/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "server/trace_context.h"

namespace moed::server {
namespace {

std::string Logged(LogFormat format, const std::function<void()>& write) {
  StartLog(format, "info");
  testing::internal::CaptureStderr();
  write();
  return testing::internal::GetCapturedStderr();
}

TEST(LogTest, TextHasFieldsAsKeysAndValues) {
  const std::string line = Logged(LogFormat::kText, [] {
    LogEvent(LogLevel::kInfo, "call", {{"method", "/a/B"}, {"empty", ""}, {"code", "OK"}});
  });
  EXPECT_THAT(line, testing::EndsWith(" info call method=/a/B code=OK\n"));
}

TEST(LogTest, JsonIsAnObjectALineWhateverTheText) {
  const std::string nasty = "quote\" back\\slash\nnewline\ttab \xC3\xA9";
  const std::string lines = Logged(LogFormat::kJson, [&] {
    LogEvent(LogLevel::kWarning, nasty, {{"key", nasty}, {"empty", ""}});
    LogEvent(LogLevel::kInfo, "without fields", {});
  });
  const size_t end = lines.find('\n');
  const auto first = nlohmann::json::parse(lines.substr(0, end));
  EXPECT_EQ(first["level"], "warning");
  EXPECT_EQ(first["message"], nasty);
  EXPECT_EQ(first["key"], nasty);
  EXPECT_FALSE(first.contains("empty"));
  EXPECT_EQ(nlohmann::json::parse(lines.substr(end + 1))["message"], "without fields");
}

TEST(LogTest, LinesBelowTheLevelAreNotWritten) {
  const std::string lines =
      Logged(LogFormat::kText, [] { LogEvent(LogLevel::kDebug, "hidden", {}); });
  EXPECT_EQ(lines, "");
}

TEST(TraceContextTest, OnlyWellFormedTraceparentsAreTaken) {
  const struct {
    const char* text;
    bool valid;
  } cases[] = {
      {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true},
      {"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true},
      {"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false},
      {"00-00000000000000000000000000000000-00f067aa0ba902b7-01", false},
      {"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false},
      {"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false},
      {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", false},
      {"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false},
      {"", false},
  };
  for (const auto& [text, valid] : cases) EXPECT_EQ(IsTraceparent(text), valid) << text;
}

}  // namespace
}  // namespace moed::server
