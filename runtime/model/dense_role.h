// The dense tensors of a decoder, by role instead of by a family's name.
#pragma once

#include <cstdint>

namespace moed::model {

enum class DenseRole : uint8_t {
  kEmbedding,
  kFinalNorm,
  kLmHead,
  // per layer
  kAttentionNorm,
  kFfnNorm,
  kQuery,
  kKey,
  kValue,
  kOutput,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kOutputBias,
  kQueryNorm,
  kKeyNorm,
  kRouter,
  kMlpGate,
  kMlpUp,
  kMlpDown,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  kSharedExpertGate,
};

inline constexpr int kNumDenseRoles = static_cast<int>(DenseRole::kSharedExpertGate) + 1;

constexpr bool IsPerLayer(DenseRole role) { return role > DenseRole::kLmHead; }

}  // namespace moed::model
