#include "runtime/backend/cpu/linear.h"

#include <utility>

#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

class RowMajorWeight : public LinearWeight {
 public:
  RowMajorWeight(const Tensor& weight, const Tensor& bias)
      : out_(weight.dim(0)), in_(weight.dim(1)) {
    values_.assign(weight.As<BFloat16>(), weight.As<BFloat16>() + out_ * in_);
    if (!bias.empty()) bias_.assign(bias.As<float>(), bias.As<float>() + out_);
  }
  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  const BFloat16* row(int64_t n) const { return values_.data() + n * in_; }
  float bias(int64_t n) const { return bias_.empty() ? 0.0f : bias_[n]; }

 private:
  int64_t out_;
  int64_t in_;
  std::vector<BFloat16> values_;
  std::vector<float> bias_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(ThreadPool&, const Tensor& weight,
                                                         const Tensor& bias) {
  if (weight.dtype() != DType::kBF16 || weight.rank() != 2) {
    return absl::InvalidArgumentError("a linear weight must be a bf16 matrix");
  }
  return std::make_unique<RowMajorWeight>(weight, bias);
}

void LinearRows(ThreadPool& pool, const LinearWeight& weight, const Tensor& x, const Tensor& out,
                bool accumulate) {
  const auto& rows = static_cast<const RowMajorWeight&>(weight);
  const int64_t in = weight.in_features();
  const int64_t out_width = weight.out_features();
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t t = 0; t < x.dim(0); ++t) {
        float sum = 0;
        const BFloat16* x_row = x.As<BFloat16>() + t * in;
        for (int64_t i = 0; i < in; ++i) sum += ToFloat(x_row[i]) * ToFloat(rows.row(n)[i]);
        float& y = out.As<float>()[t * out_width + n];
        y = (accumulate ? y : 0.0f) + sum + rows.bias(n);
      }
    }
  };
  pool.ParallelFor(out_width, 8, body);
}

void LinearF32Rows(ThreadPool& pool, const Tensor& weight, const Tensor& x, const Tensor& out) {
  const int64_t in = weight.dim(1);
  const int64_t out_width = weight.dim(0);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t n = 0; n < out_width; ++n) {
        float sum = 0;
        const float* x_row = x.As<float>() + t * in;
        const float* w_row = weight.As<float>() + n * in;
        for (int64_t i = 0; i < in; ++i) sum += x_row[i] * w_row[i];
        out.As<float>()[t * out_width + n] = sum;
      }
    }
  };
  pool.ParallelFor(x.dim(0), 1, body);
}

}  // namespace moed::backend
