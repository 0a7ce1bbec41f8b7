#include <algorithm>
#include <bit>

#include "runtime/backend/cuda/cuda_status.h"
#include "runtime/backend/cuda/step_tables.h"

namespace moed::backend {

StepTables::~StepTables() {
  cudaFreeHost(staging_);
  cudaFree(device_);
}

absl::Status StepTables::Reserve(size_t words) {
  if (words <= capacity_words_) return absl::OkStatus();
  const size_t capacity = std::max<size_t>(2 * words, 1 << 14);
  cudaFreeHost(std::exchange(staging_, nullptr));
  cudaFree(std::exchange(device_, nullptr));
  capacity_words_ = 0;
  absl::Status status =
      CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&staging_), capacity * 4),
                 "pinned memory for the step's tables");
  if (!status.ok()) return status;
  status = CudaStatus(cudaMalloc(reinterpret_cast<void**>(&device_), capacity * 4),
                      "device memory for the step's tables");
  if (!status.ok()) return status;
  capacity_words_ = capacity;
  ++moves_;
  return absl::OkStatus();
}

absl::Status StepTables::Upload(std::span<const int32_t> token_ids,
                                std::span<const AttentionSegment> segments, cudaStream_t stream) {
  const size_t tokens = token_ids.size();
  size_t words = 3 * tokens;
  for (const AttentionSegment& segment : segments) words += segment.kv_blocks.size();
  // The last step's copy must have left the staging memory.
  absl::Status status = CudaStatus(cudaStreamSynchronize(stream), "waiting for the last step");
  if (!status.ok()) return status;
  status = Reserve(words);
  if (!status.ok()) return status;

  std::copy(token_ids.begin(), token_ids.end(), staging_);
  int32_t* positions = staging_ + tokens;
  int32_t* block_begin = positions + tokens;
  int32_t* blocks = block_begin + tokens;
  std::fill(positions, positions + tokens, -1);
  std::fill(block_begin, block_begin + tokens, 0);
  int32_t next_block = 0;
  max_context_ = 0;
  for (const AttentionSegment& segment : segments) {
    for (int i = 0; i < segment.num_tokens; ++i) {
      positions[segment.first_row + i] = segment.context_start + i;
      block_begin[segment.first_row + i] = next_block;
    }
    std::copy(segment.kv_blocks.begin(), segment.kv_blocks.end(), blocks + next_block);
    next_block += static_cast<int32_t>(segment.kv_blocks.size());
    max_context_ = std::max(max_context_, segment.context_start + segment.num_tokens);
  }
  max_context_ = static_cast<int>(std::bit_ceil(static_cast<uint32_t>(max_context_)));
  view_ = {device_, device_ + tokens, device_ + 2 * tokens, device_ + 3 * tokens};
  return CudaStatus(cudaMemcpyAsync(device_, staging_, words * 4, cudaMemcpyHostToDevice, stream),
                    "copying the step's tables");
}

}  // namespace moed::backend
