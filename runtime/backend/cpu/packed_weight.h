// A dense weight in the CPU's own layout: bf16 panels (panel.h) and a float32 bias. Immutable once
// packed; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/panel.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

class PackedWeight : public LinearWeight {
 public:
  // Copies `weight` [out, in] bf16 and `bias` [out] f32 (or empty). INVALID_ARGUMENT if type or
  // shape is another; RESOURCE_EXHAUSTED if the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(ThreadPool& pool, const Tensor& weight,
                                                            const Tensor& bias);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }

  // `in` rounded up to what every kernel can take whole (an AMX tile is 32 deep); zeros beyond in.
  int64_t depth() const { return depth_; }
  int64_t num_panels() const { return NumPanels(out_); }
  int64_t panel_elements() const { return depth_ * kPanelColumns; }
  const BFloat16* panel(int64_t index) const {
    return reinterpret_cast<const BFloat16*>(panels_.data()) + index * panel_elements();
  }
  // [out], or empty.
  const std::vector<float>& bias() const { return bias_; }

 private:
  PackedWeight(int64_t out, int64_t in);

  int64_t out_;
  int64_t in_;
  int64_t depth_;
  Buffer panels_;
  std::vector<float> bias_;
};

}  // namespace moed::backend
