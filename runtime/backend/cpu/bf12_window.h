// The window of 16 exponents that a bf12 row is stored in (bf12.h), and what lies outside of it.
// Pure; any thread.
#pragma once

#include <cstdint>

#include "runtime/backend/dtype.h"

namespace moed::backend {

// Exponents that a row's window holds, from its base on.
constexpr int kBf12Window = 16;
// Bases above would reach beyond the largest exponent, 255.
constexpr int kBf12MaxBase = 240;

// The base whose window leaves the fewest of `values` [count] outside; the highest of those.
uint8_t ChooseBf12Base(const BFloat16* values, int64_t count);

// Where `values` [count], at most 65536, lie outside the window of `base`: writes the places, in
// rising order, to `places` [count + kBf12PlacesBeyond] and returns how many they are.
constexpr int64_t kBf12PlacesBeyond = 64;
int64_t FindBf12Escapes(const BFloat16* values, int64_t count, uint8_t base, uint16_t* places);

}  // namespace moed::backend
