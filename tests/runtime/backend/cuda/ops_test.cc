// Dense products, norms and routing of the CUDA backend against the CPU backend's, on the same
// values.
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/backend/cuda/both_backends_test.h"

namespace moed::backend {
namespace {

using Shapes = std::vector<std::pair<int, int>>;

class CudaOpsTest : public BothBackendsTest {};

TEST_F(CudaOpsTest, LinearAtEveryRowCountWithBiasAndAccumulation) {
  // The latter two of as many outputs as keep a large device's multiprocessors busy at once.
  for (const int rows : {1, 2, 3, 7, 8, 9, 16, 17, 32, 33}) {
    for (const auto& [in, out] :
         Shapes{{64, 96}, {520, 40}, {100, 24}, {1032, 2048}, {520, 5080}}) {
      for (const bool accumulate : {false, true}) {
        ExpectSame(
            [&, in = in, out = out](Backend& backend, DeviceTensors& memory) {
              std::vector<BFloat16> weight = RandomBFloat16s(size_t(in) * out, 1);
              std::vector<float> bias = RandomFloats(out, 2);
              const auto linear =
                  backend.PrepareLinear(Tensor(weight.data(), DType::kBF16, {out, in}),
                                        Tensor(bias.data(), DType::kF32, {out}));
              EXPECT_TRUE(linear.ok()) << linear.status();
              const Tensor x =
                  memory.Put(RandomBFloat16s(size_t(rows) * in, 3), DType::kBF16, {rows, in});
              const Tensor y =
                  memory.Put(RandomFloats(size_t(rows) * out, 4), DType::kF32, {rows, out});
              backend.Linear(**linear, x, y, accumulate);
              return memory.Get<float>(y);
            },
            1e-5);
      }
    }
  }
}

// Of rows that are normed, with `outs` weights.
std::vector<float> NormedProducts(int rows, int in, const std::vector<int>& outs, Backend& backend,
                                  DeviceTensors& memory) {
  std::vector<std::unique_ptr<LinearWeight>> weights;
  std::vector<LinearProduct> products;
  for (const int out : outs) {
    std::vector<BFloat16> weight = RandomBFloat16s(size_t(in) * out, out);
    std::vector<float> bias = RandomFloats(out, out);
    weights.push_back(backend
                          .PrepareLinear(Tensor(weight.data(), DType::kBF16, {out, in}),
                                         Tensor(bias.data(), DType::kF32, {out}))
                          .value());
    products.push_back({weights.back().get(), memory.Make(DType::kF32, {rows, out})});
  }
  const Tensor x = memory.Put(RandomFloats(size_t(rows) * in, 3, 5.0f), DType::kF32, {rows, in});
  const Tensor norm = memory.Put(RandomFloats(in, 4), DType::kF32, {in});
  backend.NormLinearGroup(x, norm, 1e-5f, memory.Make(DType::kBF16, {rows, in}), products);
  std::vector<float> all;
  for (const LinearProduct& product : products) {
    for (float value : memory.Get<float>(product.out)) all.push_back(value);
  }
  return all;
}

TEST_F(CudaOpsTest, NormsTheRowsOfAGroupOfProducts) {
  const std::vector<std::vector<int>> groups = {{96, 40, 40}, {4096, 512, 512}, {3000, 24}};
  for (const int rows : {1, 7, 8, 9, 16, 17}) {
    for (const int in : {520, 2880}) {
      for (const std::vector<int>& outs : groups) {
        ExpectSame(
            [&](Backend& backend, DeviceTensors& memory) {
              return NormedProducts(rows, in, outs, backend, memory);
            },
            3e-3);
      }
    }
  }
}

TEST_F(CudaOpsTest, RmsNormInBothPrecisions) {
  ExpectSame(
      [](Backend& backend, DeviceTensors& memory) {
        const Tensor x = memory.Put(RandomFloats(5 * 300, 1), DType::kF32, {5, 300});
        const Tensor weight = memory.Put(RandomFloats(300, 2), DType::kF32, {300});
        const Tensor out = memory.Make(DType::kBF16, {5, 300});
        const Tensor out_f32 = memory.Make(DType::kF32, {5, 300});
        backend.RmsNorm(x, weight, 1e-6f, out, out_f32);
        std::vector<float> all = memory.Get<float>(out_f32);
        for (float value : memory.GetBFloat16(out)) all.push_back(value);
        return all;
      },
      1e-3);
}

TEST_F(CudaOpsTest, RouteWithEveryScoring) {
  for (const bool sigmoid : {false, true}) {
    for (const bool after : {false, true}) {
      for (const bool normalize : {false, true}) {
        const RouterSpec spec = {
            .scoring = sigmoid ? RouterSpec::Scoring::kSigmoid : RouterSpec::Scoring::kSoftmax,
            .softmax_after_topk = after,
            .normalize_topk = normalize,
            .scale = 2.5f,
            .num_experts = 70,
            .top_k = 6};
        ExpectSame(
            [&](Backend& backend, DeviceTensors& memory) {
              std::vector<float> values = RandomFloats(9 * 70, 1);
              values[3] = values[5] = 4.0f;  // a tie goes to the lower id
              const Tensor logits = memory.Put(values, DType::kF32, {9, 70});
              const Tensor ids = memory.Make(DType::kI32, {9, 6});
              const Tensor weights = memory.Make(DType::kF32, {9, 6});
              backend.Route(spec, logits, ids, weights);
              std::vector<float> all = memory.Get<float>(weights);
              for (int32_t id : memory.Get<int32_t>(ids)) all.push_back(static_cast<float>(id));
              return all;
            },
            1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace moed::backend
