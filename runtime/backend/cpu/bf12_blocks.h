// The bits of lossless 12-bit rows (bf12.h has the format): blocks of 128 values in 192 bytes, a
// byte of sign and mantissa each and a nibble, the exponent's distance from the row's base.
//   32 words  low byte: value w,      high byte: value 32 + w
//   32 words  low byte: value 64 + w, high byte: value 96 + w
//   32 words  nibble j: value 32 j + w
// So a vector of each decodes to four vectors of values with shifts and masks alone. Pure; any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/dtype.h"

namespace moed::backend {

constexpr int64_t kBf12BlockValues = 128;
constexpr int64_t kBf12BlockBytes = 192;

// values: [num_blocks * 128]. A value outside the window is stored as the placeholder, the base
// exponent with no sign and mantissa. Returns whether there is one.
bool EncodeBf12Blocks(const BFloat16* values, int64_t num_blocks, uint8_t base, std::byte* blocks);

// Fetches bytes `ahead` of what it reads into the L2 cache.
void DecodeBf12Blocks(const std::byte* blocks, int64_t num_blocks, uint8_t base, int64_t ahead,
                      BFloat16* values);

}  // namespace moed::backend
