#include "runtime/model/router_probe.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace moed::model {
namespace {

constexpr int64_t kStepsBetween = 8;
constexpr int64_t kRows = 8;

// Adds the softmax of `row` to `sums`.
void AddSoftmax(std::span<float> row, std::span<float> sums) {
  const float largest = *std::max_element(row.begin(), row.end());
  float total = 0;
  for (float& value : row) total += value = std::exp(value - largest);
  for (size_t i = 0; i < row.size(); ++i) sums[i] += row[i] / total;
}

}  // namespace

absl::Status RouterProbe::Look(int layer, const backend::Tensor& logits, backend::Backend& backend,
                               cache::ExpertCache* cache) {
  if (step_ % kStepsBetween != 0) return absl::OkStatus();
  const int64_t tokens = logits.dim(0);
  const int64_t experts = logits.dim(1);
  const int64_t count = std::min(tokens, kRows);
  // Of a long prompt another part each time.
  const int64_t first = step_ / kStepsBetween * kRows % (tokens - count + 1);
  rows_.resize(count * experts);
  const std::span<float> rows(rows_);
  absl::Status status =
      backend.CopyToHost(reinterpret_cast<const std::byte*>(logits.As<float>() + first * experts),
                         std::as_writable_bytes(rows));
  if (!status.ok()) return status;
  sums_.assign(experts, 0);
  for (int64_t row = 0; row < count; ++row) AddSoftmax(rows.subspan(row * experts, experts), sums_);
  cache->ObserveProbabilities(layer, sums_, static_cast<int>(count));
  return absl::OkStatus();
}

}  // namespace moed::model
