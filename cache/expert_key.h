// The name of one expert: an FFN of one layer.
#pragma once

#include <cstdint>

namespace moed::cache {

struct ExpertKey {
  int32_t layer = 0;
  int32_t expert = 0;

  friend bool operator==(const ExpertKey&, const ExpertKey&) = default;
  // The check takes the literal that <=> is compared with for a pointer.
  // NOLINTNEXTLINE(modernize-use-nullptr)
  friend auto operator<=>(const ExpertKey&, const ExpertKey&) = default;
};

}  // namespace moed::cache
