#include "server/log.h"

#include <grpc/support/log.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace moed::server {
namespace {

// Between a message, its fields' names and values, inside spdlog's payload: ASCII's unit separator,
// which no text that is logged holds.
constexpr char kSeparator = '\x1f';

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// A JSON string's contents: quotes, backslashes and control characters escaped.
void AppendEscaped(absl::string_view text, std::string* out) {
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(out, "\\", std::string(1, c));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppend(out, "\\u00", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      out->push_back(c);
    }
  }
}

void AppendMember(absl::string_view key, absl::string_view value, std::string* out) {
  absl::StrAppend(out, out->empty() ? "{\"" : ",\"");
  AppendEscaped(key, out);
  absl::StrAppend(out, "\":\"");
  AppendEscaped(value, out);
  out->push_back('"');
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    const absl::string_view payload(message.payload.data(), message.payload.size());
    const std::vector<absl::string_view> parts = absl::StrSplit(payload, kSeparator);
    const auto level = spdlog::level::to_string_view(message.level);
    std::string object;
    AppendMember("time",
                 absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(message.time),
                                  absl::UTCTimeZone()),
                 &object);
    AppendMember("level", {level.data(), level.size()}, &object);
    AppendMember("message", parts[0], &object);
    for (size_t i = 1; i + 1 < parts.size(); i += 2) AppendMember(parts[i], parts[i + 1], &object);
    absl::StrAppend(&object, "}\n");
    line.append(object.data(), object.data() + object.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

// The message of a text line, its fields as key=value.
class TextMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm& /*time*/,
              spdlog::memory_buf_t& line) override {
    bool key = true;
    for (const char c : absl::string_view(message.payload.data(), message.payload.size())) {
      if (c != kSeparator) {
        line.push_back(c);
        continue;
      }
      line.push_back(key ? ' ' : '=');
      key = !key;
    }
  }

  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<TextMessage>();
  }
};

std::unique_ptr<spdlog::formatter> MakeFormatter(LogFormat format) {
  if (format == LogFormat::kJson) return std::make_unique<JsonFormatter>();
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<TextMessage>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %*");
  return formatter;
}

}  // namespace

void StartLog(LogFormat format, const std::string& level) {
  spdlog::drop("moed");
  spdlog::set_default_logger(format == LogFormat::kJson ? spdlog::stderr_logger_mt("moed")
                                                        : spdlog::stderr_color_mt("moed"));
  spdlog::set_formatter(MakeFormatter(format));
  SetLogLevel(level);
  // gRPC calls much an error that is none of the operator's, and writes in a form of its own.
  gpr_set_log_function([](gpr_log_func_args* line) {
    LogEvent(LogLevel::kDebug, "grpc", {{"says", line->message}});
  });
}

void SetLogLevel(const std::string& level) { spdlog::set_level(spdlog::level::from_str(level)); }

void LogEvent(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields) {
  const spdlog::level::level_enum spdlog_level = ToSpdlog(level);
  if (!spdlog::should_log(spdlog_level)) return;
  std::string payload(message);
  for (const auto& [key, value] : fields) {
    if (value.empty()) continue;
    absl::StrAppend(&payload, std::string(1, kSeparator), key, std::string(1, kSeparator), value);
  }
  spdlog::log(spdlog_level, spdlog::string_view_t(payload));
}

}  // namespace moed::server
