#include "runtime/backend/cuda/device/step_tables.h"

#include <algorithm>
#include <bit>

namespace moed::backend {

absl::Status StepTables::Upload(std::span<const int32_t> token_ids,
                                std::span<const AttentionSegment> segments, cudaStream_t stream) {
  const size_t tokens = token_ids.size();
  size_t words = 3 * tokens;
  for (const AttentionSegment& segment : segments) words += segment.kv_blocks.size();
  const absl::StatusOr<std::byte*> staged = upload_.Stage(words * sizeof(int32_t));
  if (!staged.ok()) return staged.status();

  auto* const list = reinterpret_cast<int32_t*>(*staged);
  std::copy(token_ids.begin(), token_ids.end(), list);
  std::fill_n(list + tokens, tokens, -1);
  std::fill_n(list + 2 * tokens, tokens, 0);
  layout_ = LayoutOf(segments);
  FillPositions(segments, list + tokens, list + 2 * tokens, list + 3 * tokens);
  const auto* const device = reinterpret_cast<const int32_t*>(upload_.target());
  view_ = {device, device + tokens, device + 2 * tokens, device + 3 * tokens};
  return upload_.Copy(stream);
}

void StepTables::FillPositions(std::span<const AttentionSegment> segments, int32_t* positions,
                               int32_t* block_begin, int32_t* blocks) {
  int32_t next_block = 0;
  int longest = 0;
  for (const AttentionSegment& segment : segments) {
    for (int i = 0; i < segment.num_tokens; ++i) {
      positions[segment.first_row + i] = segment.context_start + i;
      block_begin[segment.first_row + i] = next_block;
    }
    std::copy(segment.kv_blocks.begin(), segment.kv_blocks.end(), blocks + next_block);
    next_block += static_cast<int32_t>(segment.kv_blocks.size());
    longest = std::max(longest, segment.context_start + segment.num_tokens);
  }
  max_context_ = static_cast<int>(std::bit_ceil(static_cast<uint32_t>(longest)));
}

}  // namespace moed::backend
