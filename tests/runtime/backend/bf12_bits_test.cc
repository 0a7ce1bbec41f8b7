#include "runtime/backend/bf12_bits.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/bf12_window.h"

namespace moed::backend {
namespace {

static_assert(kBf12PairBlockValues == kBf12BlockValues);
static_assert(kBf12PairBlockBytes == kBf12BlockBytes);

using Block = std::array<BFloat16, kBf12BlockValues>;

// As a kernel does: words of each plane, two values a word.
template <int kGroup>
void DecodeGroup(const std::byte* block, uint8_t base, Block* values) {
  for (int w = 0; w < 32; w += 2) {
    uint32_t bytes;
    uint32_t nibbles;
    std::memcpy(&bytes, block + kGroup / 2 * kBf12PlaneBytes + 2 * w, sizeof(bytes));
    std::memcpy(&nibbles, block + 2 * kBf12PlaneBytes + 2 * w, sizeof(nibbles));
    const uint32_t pair = DecodeBf12Pair<kGroup>(bytes, nibbles, Bf12BasePair(base));
    const uint32_t own = kGroup % 2 == 0 ? bytes & 0x00ff00ff : bytes >> 8 & 0x00ff00ff;
    ASSERT_EQ(SelectBf12Bits(own * 0x0101, Bf12Exponents<kGroup>(nibbles & Bf12CodeMask(kGroup),
                                                                 Bf12BasePair(base))),
              pair)
        << "group " << kGroup << " base " << int{base};
    (*values)[32 * kGroup + w] = static_cast<BFloat16>(pair);
    (*values)[32 * kGroup + w + 1] = static_cast<BFloat16>(pair >> 16);
  }
}

// Every pattern, at every place of a block, in every window that holds it.
TEST(Bf12BitsTest, DecodesEveryBf12PatternAsTheCpuDoes) {
  for (int base = 0; base <= kBf12MaxBase; ++base) {
    for (int first = 0; first < 65536; first += static_cast<int>(kBf12BlockValues)) {
      Block values;
      for (int i = 0; i < kBf12BlockValues; ++i) {
        // Spread over the block, so that neighbours differ in all bits.
        values[i * 37 % kBf12BlockValues] = static_cast<BFloat16>(first + i);
      }
      std::array<std::byte, kBf12BlockBytes> block;
      EncodeBf12Blocks(values.data(), 1, static_cast<uint8_t>(base), block.data());
      Block decoded;
      DecodeGroup<0>(block.data(), static_cast<uint8_t>(base), &decoded);
      DecodeGroup<1>(block.data(), static_cast<uint8_t>(base), &decoded);
      DecodeGroup<2>(block.data(), static_cast<uint8_t>(base), &decoded);
      DecodeGroup<3>(block.data(), static_cast<uint8_t>(base), &decoded);
      for (int i = 0; i < kBf12BlockValues; ++i) {
        const int distance = (values[i] >> 7 & 0xff) - base;
        const bool inside = distance >= 0 && distance < kBf12Window;
        const BFloat16 expected = inside ? values[i] : Bf12Placeholder(static_cast<uint8_t>(base));
        ASSERT_EQ(decoded[i], expected) << "base " << base << " pattern " << values[i];
      }
    }
  }
}

}  // namespace
}  // namespace moed::backend
