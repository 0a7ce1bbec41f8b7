#include "server/trace_context.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/string_view.h"

namespace moed::server {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;

bool IsLowerHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) { return text.find_first_not_of('0') == text.npos; }

std::string Metadata(const grpc::ServerContextBase& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
}

bool IsPrintable(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); });
}

}  // namespace

bool IsTraceparent(absl::string_view text) {
  // 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
  if (text.size() != 55 || text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
  const absl::string_view version = text.substr(0, 2), trace = text.substr(3, 32),
                          parent = text.substr(36, 16), flags = text.substr(53, 2);
  return IsLowerHex(version) && version != "ff" && IsLowerHex(trace) && !IsZero(trace) &&
         IsLowerHex(parent) && !IsZero(parent) && IsLowerHex(flags);
}

TraceContext TraceContextOf(const grpc::ServerContextBase& context) {
  TraceContext trace;
  trace.traceparent = Metadata(context, "traceparent");
  if (!IsTraceparent(trace.traceparent)) trace.traceparent.clear();
  trace.request_id = Metadata(context, "x-request-id");
  if (trace.request_id.size() > kMaxRequestIdBytes || !IsPrintable(trace.request_id)) {
    trace.request_id.clear();
  }
  return trace;
}

}  // namespace moed::server
