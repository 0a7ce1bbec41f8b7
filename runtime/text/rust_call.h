// Calls of the Rust library with C++ results: sinks that fill containers, codes to Status.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/text/rust_abi.h"

namespace moed::text {

inline MoedSlice ToSlice(std::string_view text) { return {text.data(), text.size()}; }

// Appends what is written to `items`, a std::string or std::vector<int32_t>.
template <typename Container>
MoedSink SinkTo(Container& items) {
  return {&items, [](void* context, const void* data, size_t count) {
            auto* begin = static_cast<const typename Container::value_type*>(data);
            auto* target = static_cast<Container*>(context);
            target->insert(target->end(), begin, begin + count);
          }};
}

inline absl::Status ToStatus(int32_t code, const std::string& message) {
  switch (code) {
    case 0:
      return absl::OkStatus();
    case kMoedTextInvalidArgument:
      return absl::InvalidArgumentError(message);
    case kMoedTextResourceExhausted:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

// `call(result_sink, error_sink)` is one function of the ABI.
template <typename Container, typename Call>
absl::StatusOr<Container> CallRust(Call call) {
  Container result;
  std::string error;
  const int32_t code = call(SinkTo(result), SinkTo(error));
  if (code != 0) return ToStatus(code, error);
  return result;
}

}  // namespace moed::text
