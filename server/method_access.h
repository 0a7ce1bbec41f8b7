// Which key may call which gRPC method. A method that is not listed here may be called by nobody.
// Pure.
#pragma once

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace moed::server {

enum class Access {
  kOpen,       // no key: health
  kInference,  // generating, tokenizing, what is served
  kObserve,    // statistics and load
  kAdmin,      // changing the running server
  kNobody,
};

struct MethodAccess {
  absl::string_view path;  // "/package.Service/Method"
  Access access;
};

// Sorted by path.
absl::Span<const MethodAccess> AllMethods();
Access AccessOf(absl::string_view path);

}  // namespace moed::server
