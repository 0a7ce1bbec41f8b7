// The attention half of a layer in one launch, against the same ops one by one on the same GPU.
#include <memory>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cuda/device_tensors.h"

namespace moed::backend {
namespace {

constexpr int kBlockTokens = 16;

struct Shape {
  int hidden;
  int query_heads;
  int kv_heads;
  int head_dim;
  bool has_norms = true;
  bool norm_per_head = true;  // else over all heads
  bool has_biases = false;
  int sliding_window = 0;
  int rotary_dims = 0;  // 0: all
  bool interleaved = false;
  float clip = 0.0f;
};

// A layer's weights, the context before the token, and what the ops write to.
class AttentionLayer {
 public:
  AttentionLayer(const Shape& shape, Backend& backend, int context)
      : shape_(shape), backend_(backend), tensors_(backend) {
    const int q_width = shape.query_heads * shape.head_dim;
    const int kv_width = shape.kv_heads * shape.head_dim;
    query_ = Weight(q_width, shape.hidden, 1);
    key_ = Weight(kv_width, shape.hidden, 2);
    value_ = Weight(kv_width, shape.hidden, 3);
    output_ = Weight(shape.hidden, q_width, 4);
    norm_ = tensors_.Put(RandomFloats(shape.hidden, 5), DType::kF32, {shape.hidden});
    frequencies_ = RandomFloats(RotaryDims() / 2, 6, 0.1f);
    if (shape.has_norms) {
      const int q_norm = shape.norm_per_head ? shape.head_dim : q_width;
      const int k_norm = shape.norm_per_head ? shape.head_dim : kv_width;
      prepare_.q_norm = tensors_.Put(RandomFloats(q_norm, 7), DType::kF32, {q_norm});
      prepare_.k_norm = tensors_.Put(RandomFloats(k_norm, 8), DType::kF32, {k_norm});
      prepare_.norm_per_head = shape.norm_per_head;
    }
    prepare_.clip_qkv = shape.clip;
    prepare_.rope = {
        .rotary_dims = RotaryDims(),
        .interleaved = shape.interleaved,
        .inverse_frequencies = Tensor(frequencies_.data(), DType::kF32, {RotaryDims() / 2})};
    // Every other block, in falling order.
    const int blocks = context / kBlockTokens + 2;
    for (int i = 0; i < blocks; ++i) blocks_.push_back(2 * (blocks - 1 - i));
    const size_t cached = size_t(2) * blocks * kBlockTokens * kv_width;
    keys_ = tensors_.Put(RandomBFloat16s(cached, 9), DType::kBF16,
                         {2 * blocks, kBlockTokens, kv_width});
    values_ = tensors_.Put(RandomBFloat16s(cached, 10), DType::kBF16,
                           {2 * blocks, kBlockTokens, kv_width});
    residual_ = tensors_.Put(RandomFloats(shape.hidden, 11), DType::kF32, {1, shape.hidden});
    q_ = tensors_.Make(DType::kF32, {1, q_width});
    k_ = tensors_.Make(DType::kF32, {1, kv_width});
    v_ = tensors_.Make(DType::kF32, {1, kv_width});
    normed_ = tensors_.Make(DType::kBF16, {1, shape.hidden});
    attended_ = tensors_.Make(DType::kBF16, {1, q_width});
  }

  // The token at `position`; false if it was to be fused and is not.
  bool Run(int position, bool fused) {
    Begin(position);
    return Issue(position, fused);
  }
  void Begin(int position) {
    const AttentionSegment segments[] = {{0, 1, position, blocks_}};
    const std::vector<int32_t> ids(1);
    backend_.BeginStep(ids, segments);
  }
  // Of the step that Begin began.
  bool Issue(int position, bool fused) {
    const AttentionSegment segments[] = {{0, 1, position, blocks_}};
    const AttentionSpec spec = {.query_heads = shape_.query_heads,
                                .kv_heads = shape_.kv_heads,
                                .head_dim = shape_.head_dim,
                                .scale = 0.1f,
                                .sliding_window = shape_.sliding_window};
    const LinearProduct products[] = {{query_.get(), q_}, {key_.get(), k_}, {value_.get(), v_}};
    const KvLayer cache = {keys_, values_, kBlockTokens};
    if (fused) {
      return backend_.FusedAttention({.norm_weight = norm_,
                                      .norm_epsilon = 1e-5f,
                                      .qkv = products,
                                      .prepare = prepare_,
                                      .spec = spec,
                                      .cache = cache,
                                      .output = output_.get(),
                                      .residual = residual_});
    }
    backend_.NormLinearGroup(residual_, norm_, 1e-5f, normed_, products);
    backend_.PrepareQkv(prepare_, spec, segments, q_, k_, v_, cache);
    backend_.Attention(spec, segments, q_, cache, attended_);
    backend_.Linear(*output_, attended_, residual_, /*accumulate=*/true);
    return true;
  }

  void ResetResidual() {
    residual_ = tensors_.Put(RandomFloats(shape_.hidden, 11), DType::kF32, {1, shape_.hidden});
  }
  std::vector<float> Residual() { return tensors_.Get<float>(residual_); }
  std::vector<float> Keys() { return tensors_.GetBFloat16(keys_); }
  std::vector<float> Values() { return tensors_.GetBFloat16(values_); }

 private:
  int RotaryDims() const { return shape_.rotary_dims > 0 ? shape_.rotary_dims : shape_.head_dim; }

  std::unique_ptr<LinearWeight> Weight(int out, int in, uint32_t seed) {
    std::vector<BFloat16> weight = RandomBFloat16s(size_t(out) * in, seed, 0.03f);
    std::vector<float> bias = RandomFloats(out, seed + 20);
    const Tensor biases = shape_.has_biases ? Tensor(bias.data(), DType::kF32, {out}) : Tensor();
    return backend_.PrepareLinear(Tensor(weight.data(), DType::kBF16, {out, in}), biases).value();
  }

  const Shape shape_;
  Backend& backend_;
  DeviceTensors tensors_;
  std::unique_ptr<LinearWeight> query_, key_, value_, output_;
  Tensor norm_, keys_, values_, residual_, q_, k_, v_, normed_, attended_;
  std::vector<float> frequencies_;
  std::vector<int32_t> blocks_;
  QkPrepare prepare_;
};

class FusedAttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    backend_ = CreateCudaBackend({}).value();
    AttentionLayer layer({.hidden = 256, .query_heads = 8, .kv_heads = 2, .head_dim = 64},
                         *backend_, 16);
    if (!layer.Run(0, /*fused=*/true)) GTEST_SKIP() << "not on this GPU, or not in this build";
  }

  // Two tokens after `context` others: the second attends to the first.
  void ExpectSame(const Shape& shape, int context) {
    SCOPED_TRACE(testing::Message() << "context " << context << ", hidden " << shape.hidden);
    // A backend keeps what it copied of the frequencies at an address.
    backend_ = CreateCudaBackend({}).value();
    AttentionLayer one_by_one(shape, *backend_, context);
    AttentionLayer fused(shape, *backend_, context);
    for (int position = context; position < context + 2; ++position) {
      ASSERT_TRUE(one_by_one.Run(position, /*fused=*/false));
      ASSERT_TRUE(fused.Run(position, /*fused=*/true));
    }
    EXPECT_LE(RelativeRms(fused.Residual(), one_by_one.Residual()), 2e-3);
    EXPECT_LE(RelativeRms(fused.Keys(), one_by_one.Keys()), 1e-3);
    EXPECT_LE(RelativeRms(fused.Values(), one_by_one.Values()), 1e-3);
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(FusedAttentionTest, GivesWhatTheOpsGiveOneByOneAtEveryContext) {
  const Shape qwen3 = {.hidden = 2048, .query_heads = 32, .kv_heads = 4, .head_dim = 128};
  for (const int context : {0, 1, 17, 127, 128, 129, 700, 5000}) ExpectSame(qwen3, context);
}

// As the layers of a step do: each launch begins while the one ahead of it runs, and reads what
// that one adds to the residual.
TEST_F(FusedAttentionTest, GivesTheSameOneRightBehindTheOther) {
  constexpr int kContext = 300;
  constexpr int kLaunches = 48;
  const Shape qwen3 = {.hidden = 2048, .query_heads = 32, .kv_heads = 4, .head_dim = 128};
  AttentionLayer apart(qwen3, *backend_, kContext);
  AttentionLayer behind(qwen3, *backend_, kContext);
  apart.Begin(kContext);
  for (int i = 0; i < kLaunches; ++i) {
    ASSERT_TRUE(apart.Issue(kContext, /*fused=*/true));
    ASSERT_TRUE(backend_->Synchronize().ok());
  }
  for (int round = 0; round < 20; ++round) {
    behind.ResetResidual();
    behind.Begin(kContext);
    for (int i = 0; i < kLaunches; ++i) ASSERT_TRUE(behind.Issue(kContext, /*fused=*/true));
    ASSERT_LE(RelativeRms(behind.Residual(), apart.Residual()), 2e-3) << "round " << round;
  }
}

TEST_F(FusedAttentionTest, TakesOtherShapesAndOptions) {
  // Rows of several pieces, the last not whole; biases; a window.
  ExpectSame({.hidden = 2880,
              .query_heads = 64,
              .kv_heads = 8,
              .head_dim = 64,
              .has_norms = false,
              .has_biases = true,
              .sliding_window = 128},
             300);
  // Groups of eight heads and of four; a third of a head rotates.
  ExpectSame({.hidden = 1032,
              .query_heads = 24,
              .kv_heads = 2,
              .head_dim = 96,
              .rotary_dims = 32,
              .interleaved = true,
              .clip = 1.0f},
             90);
  ExpectSame({.hidden = 4096, .query_heads = 32, .kv_heads = 8, .head_dim = 128}, 40);
}

TEST_F(FusedAttentionTest, TakesNormsOverAllHeads) {
  const Shape olmoe = {
      .hidden = 2048, .query_heads = 16, .kv_heads = 16, .head_dim = 128, .norm_per_head = false};
  for (const int context : {0, 129, 3000}) ExpectSame(olmoe, context);
  // Groups of several heads, of which half rotates; widths that no round of loads fills.
  ExpectSame({.hidden = 3072,
              .query_heads = 48,
              .kv_heads = 8,
              .head_dim = 128,
              .norm_per_head = false,
              .rotary_dims = 64},
             200);
  ExpectSame({.hidden = 1024,
              .query_heads = 20,
              .kv_heads = 4,
              .head_dim = 64,
              .norm_per_head = false,
              .clip = 1.0f},
             70);
}

TEST_F(FusedAttentionTest, LeavesGroupsOfFewHeadsToTheSingleOps) {
  AttentionLayer layer({.hidden = 256, .query_heads = 4, .kv_heads = 4, .head_dim = 32}, *backend_,
                       16);
  EXPECT_FALSE(layer.Run(0, /*fused=*/true));
}

}  // namespace
}  // namespace moed::backend
