#include "runtime/backend/cpu/experts.h"

#include <algorithm>

namespace moed::backend {

ExpertsOp::ExpertsOp(ThreadPool& pool, const ExpertKernels& kernels)
    : pool_(pool), kernels_(kernels), few_rows_(pool, kernels), many_rows_(pool, kernels) {}

// Kernels read whole rows of `width` values: the last token's must not end before.
const BFloat16* ExpertsOp::PadRows(const Tensor& x, int64_t width) {
  const int64_t tokens = x.dim(0);
  const int64_t hidden = x.dim(1);
  if (hidden == width) return x.As<BFloat16>();
  BFloat16* padded = padded_x_.Reserve(tokens * width);
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(x.As<BFloat16>() + t * hidden, hidden, padded + t * width);
    std::fill_n(padded + t * width + hidden, width - hidden, BFloat16{0});
  }
  return padded;
}

void ExpertsOp::Run(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                    const Tensor& x, const Tensor& out) {
  few_.clear();
  many_.clear();
  for (const ExpertWork& item : work) {
    if (item.rows.empty()) continue;
    const bool few = static_cast<int64_t>(item.rows.size()) <= kernels_.few_rows_limit;
    (few ? few_ : many_).push_back(item);
  }
  const ExpertsCall call{.format = format,
                         .top_k = top_k,
                         .x = PadRows(x, format.row_values()),
                         .out = out.As<float>()};
  few_rows_.Run(call, few_);
  many_rows_.Run(call, many_);
}

}  // namespace moed::backend
