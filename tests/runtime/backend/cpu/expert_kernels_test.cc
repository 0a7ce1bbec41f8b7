#include "tests/runtime/backend/cpu/expert_kernels_test.h"

#include <cmath>
#include <numeric>
#include <random>

namespace moed::backend {
namespace {

std::vector<BFloat16> RandomValues(int64_t count, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<BFloat16> values(count);
  for (BFloat16& value : values) value = ToBFloat16(normal(random));
  return values;
}

}  // namespace

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3}) {
    if ((hwy::SupportedTargets() & target) == 0) continue;
    variants.push_back({hwy::TargetName(target), &PortableExpertKernels(), target});
  }
  if (const ExpertKernels* kernels = Avx512Bf16ExpertKernels()) {
    variants.push_back({"AVX512BF16", kernels});
  }
  if (const ExpertKernels* kernels = AmxExpertKernels()) variants.push_back({"AMX", kernels});
  return variants;
}

std::string NameOf(const testing::TestParamInfo<Variant>& variant) { return variant.param.name; }

Expert::Expert(int64_t hidden, int64_t intermediate, uint32_t seed)
    : format(ExpertFormatKind::kBF16, hidden, intermediate),
      gate(RandomValues(hidden * intermediate, 2.0f / std::sqrt(hidden), seed)),
      up(RandomValues(hidden * intermediate, 2.0f / std::sqrt(hidden), seed + 1)),
      down(RandomValues(hidden * intermediate, 1.0f / std::sqrt(intermediate), seed + 2)),
      blob(hwy::AllocateAligned<std::byte>(format.blob_bytes())) {
  EncodeBlob();
}

void Expert::EncodeBlob() {
  const int64_t hidden = format.hidden();
  const int64_t intermediate = format.intermediate();
  format.Encode(Tensor(gate.data(), DType::kBF16, {intermediate, hidden}),
                Tensor(up.data(), DType::kBF16, {intermediate, hidden}),
                Tensor(down.data(), DType::kBF16, {hidden, intermediate}),
                {blob.get(), format.blob_bytes()});
}

std::vector<double> Expert::Reference(const BFloat16* x) const {
  const int64_t hidden = format.hidden();
  std::vector<double> y(hidden, 0.0);
  for (int64_t i = 0; i < format.intermediate(); ++i) {
    double g = 0.0;
    double u = 0.0;
    for (int64_t h = 0; h < hidden; ++h) {
      g += double{ToFloat(gate[i * hidden + h])} * ToFloat(x[h]);
      u += double{ToFloat(up[i * hidden + h])} * ToFloat(x[h]);
    }
    const double act = ToFloat(ToBFloat16(static_cast<float>(g / (1.0 + std::exp(-g)) * u)));
    for (int64_t h = 0; h < hidden; ++h) {
      y[h] += act * ToFloat(down[h * format.intermediate() + i]);
    }
  }
  return y;
}

ExpertsRunner::ExpertsRunner(int threads, const ExpertKernels& kernels, int64_t hidden,
                             int64_t tokens)
    : pool_(threads), op_(pool_, kernels), x_(RandomValues(tokens * hidden, 1.0f, 99)) {
  x_tensor_ = Tensor(x_.data(), DType::kBF16, {tokens, hidden});
}

std::vector<float> ExpertsRunner::Run(const ExpertFormat& format,
                                      const std::vector<ExpertWork>& work, int top_k) {
  const int64_t rows = x_tensor_.dim(0) * top_k;
  std::vector<float> out(rows * format.hidden(), kUntouched);
  op_.Run(format, work, top_k, x_tensor_, Tensor(out.data(), DType::kF32, {rows, format.hidden()}));
  return out;
}

std::vector<int32_t> FirstRows(int64_t count) {
  std::vector<int32_t> rows(count);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

double RelativeError(const std::vector<double>& reference, const float* actual) {
  double difference = 0.0;
  double total = 0.0;
  for (size_t i = 0; i < reference.size(); ++i) {
    difference += std::pow(actual[i] - reference[i], 2);
    total += std::pow(reference[i], 2);
  }
  return std::sqrt(difference / total);
}

}  // namespace moed::backend
