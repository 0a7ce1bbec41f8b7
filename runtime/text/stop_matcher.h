// Finds stop strings in streamed text and holds back what may yet become one.
// One per sequence; not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moed::text {

class StopMatcher {
 public:
  // `include_stop`: the matched stop string is part of the text.
  StopMatcher(std::vector<std::string> stops, bool include_stop);

  struct Result {
    std::string text;                    // safe to send
    std::optional<std::string> matched;  // set once; nothing may be pushed after
  };
  Result Push(std::string_view text);
  // The held-back text, when the sequence ends without a match.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  bool include_stop_;
  std::string held_;
};

}  // namespace moed::text
