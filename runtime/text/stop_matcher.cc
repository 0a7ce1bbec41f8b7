#include "runtime/text/stop_matcher.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace moed::text {
namespace {

// The length of the longest suffix of `text` that is a proper prefix of `stop`.
size_t BeginningOf(std::string_view stop, std::string_view text) {
  size_t length = std::min(stop.size() - 1, text.size());
  while (!text.ends_with(stop.substr(0, length))) --length;
  return length;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  std::erase(stops_, "");
}

StopMatcher::Result StopMatcher::Push(std::string_view text) {
  held_ += text;
  // The stop that is complete first wins, then the longest; that is independent of chunks.
  size_t first_end = std::string::npos;
  const std::string* matched = nullptr;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (matched == nullptr || end < first_end ||
        (end == first_end && stop.size() > matched->size())) {
      first_end = end;
      matched = &stop;
    }
  }
  if (matched != nullptr) {
    const size_t safe = include_stop_ ? first_end : first_end - matched->size();
    Result result{held_.substr(0, safe), *matched};
    held_.clear();
    return result;
  }
  size_t hold = 0;
  for (const std::string& stop : stops_) hold = std::max(hold, BeginningOf(stop, held_));
  Result result{held_.substr(0, held_.size() - hold), std::nullopt};
  held_.erase(0, held_.size() - hold);
  return result;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace moed::text
