#include "runtime/backend/cuda/device/step_layout.h"

#include <algorithm>

namespace moed::backend {

StepLayout LayoutOf(std::span<const AttentionSegment> segments) {
  StepLayout layout;
  for (const AttentionSegment& segment : segments) {
    const int end = segment.first_row + segment.num_tokens;
    for (int begin = segment.first_row; begin < end;) {
      const int tile_end = (begin / kPromptTileTokens + 1) * kPromptTileTokens;
      const int run_end = std::min(tile_end, end);
      (run_end - begin >= kLeastPromptTokens ? layout.has_prompts : layout.has_others) = true;
      begin = run_end;
    }
    layout.single_tokens = layout.single_tokens && segment.num_tokens == 1;
  }
  return layout;
}

}  // namespace moed::backend
