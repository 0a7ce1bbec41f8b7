// Experts in bf16 that tests encode, and their encoding.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

// An expert's values, as its bf16 blob.
struct Bf16Expert {
  Bf16Expert(int64_t hidden, int64_t intermediate, const std::function<BFloat16(int64_t)>& value)
      : format(ExpertFormatKind::kBF16, hidden, intermediate), values(format.blob_bytes() / 2) {
    int64_t next = 0;
    for (int64_t row = 0; row < 3 * intermediate; ++row) {
      for (int64_t h = 0; h < hidden; ++h) values[row * format.row_values() + h] = value(next++);
    }
  }

  std::span<const std::byte> blob() const { return std::as_bytes(std::span(values)); }
  const BFloat16* Row(int64_t neuron, int part) const {
    return values.data() + (3 * neuron + part) * format.row_values();
  }

  ExpertFormat format;
  std::vector<BFloat16> values;
};

inline ExpertFormat Bf12Format(const ExpertFormat& source, int tile_escapes) {
  return ExpertFormat(ExpertFormatKind::kBF12, source.hidden(), source.intermediate(),
                      tile_escapes);
}

inline std::vector<std::byte> EncodeOrDie(const Bf16Expert& expert, const ExpertFormat& format) {
  std::vector<std::byte> blob(format.blob_bytes(), std::byte{0xaa});
  EXPECT_TRUE(EncodeBf12(expert.format, expert.blob(), format, blob));
  return blob;
}

// Nine escapes in each neuron: two of each go to the list.
inline Bf16Expert ExpertWithEscapes(int64_t intermediate) {
  return Bf16Expert(128, intermediate,
                    [](int64_t i) { return i % 128 < 3 ? BFloat16{0x7f80} : BFloat16{0x3f80}; });
}

// One neuron with more escapes than its header counts, among others with a few.
inline Bf16Expert ExpertWithAWildNeuron() {
  return Bf16Expert(256, 32, [](int64_t i) {
    const bool wild = i / (3 * 256) == 5;
    return i % 256 < (wild ? 110 : 5) ? BFloat16{0x7f80} : BFloat16{0x3f80};
  });
}

}  // namespace moed::backend
