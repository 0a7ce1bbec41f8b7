// How the daemon's log looks: lines for people or JSON objects for machines, with named fields.
// spdlog carries it, so spdlog::info and friends are lines without fields. Any thread.
#pragma once

#include <initializer_list>
#include <string>

#include <utility>

#include "absl/strings/string_view.h"

namespace moed::server {

enum class LogFormat { kText, kJson };
enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Makes standard error the log. `level`: a name of --log-level.
void StartLog(LogFormat format, const std::string& level);
void SetLogLevel(const std::string& level);

using LogField = std::pair<absl::string_view, absl::string_view>;

// "message key=value key=value", or the same as members of an object. Empty values are left out.
void LogEvent(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields);

}  // namespace moed::server
