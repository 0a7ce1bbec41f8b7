// Lossless 12-bit experts: the exponents of a row of bf16 weights almost all lie in a window of 16,
// so that a value is a byte of sign and mantissa and a 4-bit distance from the window's base. What
// lies outside is an escape, stored as a placeholder (the base exponent, no sign, no mantissa) and
// listed with its true bits. Not one bit is lost.
//
// A blob is tiles of 32 neurons, the last one filled up with zeros:
//   [32 neurons: header (32 bytes), gate, up, down row (bf12_blocks.h)] [list of escapes]
// The first seven escapes of a neuron stand in its header, the others in the tile's list, whose
// capacity is one number for a model so that all blobs have one size: as much as its wildest tile
// needs. Neurons 4 i of a tile start at multiples of 128 bytes. Rows are H values rounded up to
// 128; the rest is placeholders.
//
// Pure functions; any thread. Nothing here trusts a blob but what says so.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

constexpr int kBf12HeaderEscapes = 7;
// A header's count of escapes that says "or more".
constexpr int kBf12ManyEscapes = 255;

struct Bf12Escape {
  uint16_t position = 0;  // part * row_values + column
  BFloat16 bits = 0;
};

struct Bf12Header {
  uint8_t bases[3] = {};  // of the gate, up and down row
  // In all, cut to kBf12ManyEscapes; beyond seven they are in the tile's list.
  uint8_t num_escapes = 0;
  Bf12Escape escapes[kBf12HeaderEscapes];
};
static_assert(sizeof(Bf12Header) == 32);

// An entry of a tile's list. The list begins with one whose `neuron` is the number of those behind
// it, in rising order of neurons.
struct Bf12TileEscape {
  uint16_t neuron = 0;  // of the tile, 0 to 31
  Bf12Escape escape;
  uint16_t reserved = 0;
};
static_assert(sizeof(Bf12TileEscape) == 8);

// What a placeholder of a row with this base decodes to.
constexpr BFloat16 Bf12Placeholder(uint8_t base) { return static_cast<BFloat16>(base << 7); }

// Calls function(const Bf12Escape&) for each escape of a neuron. `list` is its tile's. Trusts both.
template <class Function>
void ForEachBf12Escape(const Bf12Header& header, const Bf12TileEscape* list, int neuron,
                       const Function& function) {
  for (int i = 0; i < header.num_escapes && i < kBf12HeaderEscapes; ++i) {
    function(header.escapes[i]);
  }
  if (header.num_escapes <= kBf12HeaderEscapes) return;
  const Bf12TileEscape* const end = list + 1 + list[0].neuron;
  const Bf12TileEscape* entry = std::lower_bound(
      list + 1, end, neuron, [](const Bf12TileEscape& e, int sought) { return e.neuron < sought; });
  for (; entry != end && entry->neuron == neuron; ++entry) function(entry->escape);
}

// Positions are 16 bits: three rows must fit.
bool Bf12Supports(int64_t hidden);

// Escapes of an expert that stand in its tiles' lists.
struct Bf12ListedEscapes {
  int64_t most_in_tile = 0;
  int64_t total = 0;
};
// What encoding a bf16 blob in `format` would list.
Bf12ListedEscapes MeasureBf12Escapes(const ExpertFormat& format, std::span<const std::byte> blob);
// What a bf12 blob lists. Trusts it.
Bf12ListedEscapes CountBf12Escapes(const ExpertFormat& format, std::span<const std::byte> blob);

// Entries are counted in 16 bits. Long before, bf12 stops to pay.
constexpr int kBf12MostTileEscapes = 65535;
// The capacity for a model whose sampled experts need at most `needed` in a tile: twice that, or
// 120 more if that is less, filled up to whole cache lines.
int Bf12TileEscapeCapacity(int64_t needed);
// The smallest that holds `needed`, or -1 if none does.
int Bf12ExactTileEscapeCapacity(int64_t needed);
bool IsBf12TileEscapeCapacity(int capacity);

// Encodes the bf16 blob `source` of `source_format` into `blob` of the bf12 `format` with the same
// H and I. False if a tile's list is too small: then `blob` is garbage.
[[nodiscard]] bool EncodeBf12(const ExpertFormat& source_format, std::span<const std::byte> source,
                              const ExpertFormat& format, std::span<std::byte> blob);

// A blob is its tiles one after the other, the last with what fills the blob up.
int64_t Bf12Tiles(const ExpertFormat& format);
// Where a tile begins in the blob; that of tile Bf12Tiles is the blob's end.
size_t Bf12TileOffset(const ExpertFormat& format, int64_t tile);

// DATA_LOSS naming the neuron and what is wrong with it (a base, a count, a position, the order of
// the list), if kernels must not see this blob.
absl::Status ValidateBf12(const ExpertFormat& format, std::span<const std::byte> blob);
// The same of one tile; `blob` is the whole blob.
absl::Status ValidateBf12Tile(const ExpertFormat& format, std::span<const std::byte> blob,
                              int64_t tile);

// Values [column, column + columns) of one part of neurons [first, first + count), true bits; both
// column and columns are multiples of 128. Row i goes to target + i * stride. Trusts the blob.
void DecodeBf12(const ExpertFormat& format, const std::byte* blob, ExpertPart part, int64_t first,
                int64_t count, int64_t column, int64_t columns, BFloat16* target, int64_t stride);

}  // namespace moed::backend
