// What the kernels need to know of the current step, in device memory: token ids, and for each
// token its position, sequence and where that sequence's KV blocks are listed. Uploaded once a step
// in one copy. Owned by the CUDA backend; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/device/list_upload.h"
#include "runtime/backend/cuda/device/step_layout.h"

namespace moed::backend {

// Device pointers; T tokens of the step.
struct StepTablesView {
  const int32_t* token_ids = nullptr;    // [T]
  const int32_t* positions = nullptr;    // [T], -1 for a row without a sequence
  const int32_t* block_begin = nullptr;  // [T], index into kv_blocks of its sequence's first block
  const int32_t* kv_blocks = nullptr;    // the sequences' block lists, one after the other
};

class StepTables {
 public:
  // Lists the step and starts the copy on `stream`. Grows its memory if a step is larger than any
  // before (RESOURCE_EXHAUSTED if that fails).
  absl::Status Upload(std::span<const int32_t> token_ids,
                      std::span<const AttentionSegment> segments, cudaStream_t stream);

  const StepTablesView& view() const { return view_; }
  // The longest context, rounded up to a power of two, so that few values cover all steps.
  int max_context() const { return max_context_; }
  const StepLayout& layout() const { return layout_; }
  // How often the tables moved.
  uint64_t moves() const { return upload_.moves(); }

 private:
  void FillPositions(std::span<const AttentionSegment> segments, int32_t* positions,
                     int32_t* block_begin, int32_t* blocks);

  ListUpload upload_;
  StepTablesView view_;
  int max_context_ = 0;
  StepLayout layout_;
};

}  // namespace moed::backend
