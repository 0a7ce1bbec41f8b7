// RowSampler by its definition: doubles and a full sort, of rows in host memory.
#pragma once

#include <span>
#include <vector>

#include "runtime/backend/row_sampler.h"

namespace moed::testing {

class ReferenceRowSampler : public backend::RowSampler {
 public:
  explicit ReferenceRowSampler(const backend::RowSamplerOptions& options) : options_(options) {}

  int max_rows() const override { return options_.max_rows; }
  int max_adjustments() const override { return options_.max_rows * backend::kAdjustmentsPerRow; }
  void Sample(const backend::Tensor& logits, std::span<const backend::RowSampling> rows,
              std::span<const backend::LogitAdjustment> adjustments) override;
  absl::Status Wait() override { return absl::OkStatus(); }
  std::span<const backend::SampledRow> results() const override { return results_; }

 private:
  backend::RowSamplerOptions options_;
  std::vector<backend::SampledRow> results_;
};

}  // namespace moed::testing
