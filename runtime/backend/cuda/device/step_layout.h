// How a step's tokens belong to sequences, as far as it decides which kernels attend to them: those
// that follow one another in a sequence are attended to in tiles. Host; the numbers on both sides.
#pragma once

#include <compare>
#include <span>

#include "runtime/backend/backend.h"

namespace moed::backend {

// Tokens of a tile, and how many of a tile must follow one another to be worth one.
inline constexpr int kPromptTileTokens = 16;
inline constexpr int kLeastPromptTokens = 4;

struct StepLayout {
  bool has_prompts = false;   // runs of at least kLeastPromptTokens within a tile
  bool has_others = false;    // tokens in none of them
  bool single_tokens = true;  // no two tokens are of the same sequence

  auto operator<=>(const StepLayout&) const = default;
};

StepLayout LayoutOf(std::span<const AttentionSegment> segments);

}  // namespace moed::backend
