// The attention of steps whose tokens are of a sequence each, against the CPU backend's, and what
// recorded steps launch when others of their size come.
#include <algorithm>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cuda/device_tensors.h"

namespace moed::backend {
namespace {

constexpr int kBlockTokens = 16;
constexpr int kSteps = 4;

struct Shape {
  int query_heads;
  int kv_heads;
  int head_dim;
  bool has_norms = true;
  bool norm_per_head = true;  // else over all heads
  int sliding_window = 0;
  int rotary_dims = 0;  // 0: all
  bool interleaved = false;
  float clip = 0.0f;
};

// A layer's cache on one backend, and sequences in it, of at most `most_tokens`.
class Sequences {
 public:
  Sequences(const Shape& shape, size_t count, int most_tokens, Backend& backend)
      : shape_(shape), contexts_(count), backend_(backend), tensors_(backend) {
    // Their blocks lie between one another's.
    int32_t next = 0;
    blocks_.resize(count);
    for (int block = 0; block * kBlockTokens < most_tokens; ++block) {
      for (std::vector<int32_t>& blocks : blocks_) blocks.push_back(next++);
    }
    keys_ = tensors_.Make(DType::kBF16, {next, kBlockTokens, KvWidth()});
    values_ = tensors_.Make(DType::kBF16, {next, kBlockTokens, KvWidth()});
    const int rotary_dims = shape.rotary_dims > 0 ? shape.rotary_dims : shape.head_dim;
    frequencies_ = RandomFloats(rotary_dims / 2, 6, 0.1f);
    if (shape.has_norms) {
      const int q_norm = shape.norm_per_head ? shape.head_dim : QueryWidth();
      const int k_norm = shape.norm_per_head ? shape.head_dim : KvWidth();
      prepare_.q_norm = Floats(q_norm, 7, {q_norm});
      prepare_.k_norm = Floats(k_norm, 8, {k_norm});
      prepare_.norm_per_head = shape.norm_per_head;
    }
    prepare_.clip_qkv = shape.clip;
    prepare_.rope = {
        .rotary_dims = rotary_dims,
        .interleaved = shape.interleaved,
        .inverse_frequencies = Tensor(frequencies_.data(), DType::kF32, {rotary_dims / 2})};
  }

  // What `tokens` more of each sequence attend to, rows of different numbers in one step; `padding`
  // rows without a sequence follow.
  std::vector<float> Advance(const std::vector<int>& tokens, int padding = 0) {
    std::vector<AttentionSegment> segments;
    int rows = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] == 0) continue;
      segments.push_back({rows, tokens[i], contexts_[i], blocks_[i]});
      rows += tokens[i];
      contexts_[i] += tokens[i];
    }
    MakeRows(rows + padding);
    backend_.BeginStep(std::vector<int32_t>(rows + padding), segments);
    // By number of rows, as the model does.
    backend_.RunRecorded(rows + padding, [&] {
      const AttentionSpec spec = {.query_heads = shape_.query_heads,
                                  .kv_heads = shape_.kv_heads,
                                  .head_dim = shape_.head_dim,
                                  .scale = 0.1f,
                                  .sliding_window = shape_.sliding_window};
      backend_.PrepareAndAttend(prepare_, spec, segments, q_, k_, v_,
                                {keys_, values_, kBlockTokens}, out_);
    });
    std::vector<float> attended = tensors_.GetBFloat16(out_);
    attended.resize(size_t(rows) * QueryWidth());
    return attended;
  }

 private:
  int QueryWidth() const { return shape_.query_heads * shape_.head_dim; }
  int KvWidth() const { return shape_.kv_heads * shape_.head_dim; }
  Tensor Floats(int count, uint32_t seed, std::initializer_list<int64_t> shape) {
    return tensors_.Put(RandomFloats(count, seed), DType::kF32, shape);
  }
  // Other values in every step, at the same place for steps of as many rows.
  void MakeRows(int rows) {
    if (q_.empty() || q_.dim(0) != rows) {
      q_ = tensors_.Make(DType::kF32, {rows, QueryWidth()});
      k_ = tensors_.Make(DType::kF32, {rows, KvWidth()});
      v_ = tensors_.Make(DType::kF32, {rows, KvWidth()});
      out_ = tensors_.Make(DType::kBF16, {rows, QueryWidth()});
    }
    for (const Tensor* tensor : {&q_, &k_, &v_}) {
      const std::vector<float> values = RandomFloats(tensor->num_elements(), ++seed_);
      EXPECT_TRUE(
          backend_.CopyFromHost(std::as_bytes(std::span(values)), tensor->As<std::byte>()).ok());
    }
  }

  const Shape shape_;
  std::vector<int> contexts_;
  Backend& backend_;
  DeviceTensors tensors_;
  Tensor keys_, values_, q_, k_, v_, out_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<float> frequencies_;
  QkPrepare prepare_;
  uint32_t seed_ = 100;
};

class DecodeAttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    cpu_ = CreateCpuBackend({.num_threads = 2}).value();
  }

  // Prompts of these lengths, then steps of a token each: each attends to what the last wrote.
  void ExpectSameDecode(const Shape& shape, const std::vector<int>& prompts) {
    SCOPED_TRACE(testing::Message() << shape.query_heads << " heads of " << shape.head_dim);
    // A backend keeps what it copied of the frequencies at an address.
    const std::unique_ptr<Backend> cuda = CreateCudaBackend({}).value();
    const std::vector<int> ones(prompts.size(), 1);
    const int most_tokens = *std::max_element(prompts.begin(), prompts.end()) + kSteps;
    Sequences want(shape, prompts.size(), most_tokens, *cpu_);
    Sequences got(shape, prompts.size(), most_tokens, *cuda);
    EXPECT_LE(RelativeRms(got.Advance(prompts), want.Advance(prompts)), 1e-2);
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_LE(RelativeRms(got.Advance(ones, /*padding=*/2), want.Advance(ones, 2)), 1e-2)
          << "step " << step;
    }
  }

  std::unique_ptr<Backend> cpu_;
};

TEST_F(DecodeAttentionTest, GivesWhatTheCpuGivesAtEveryContext) {
  const Shape qwen3 = {.query_heads = 32, .kv_heads = 4, .head_dim = 128};
  ExpectSameDecode(qwen3, {1, 15, 16, 63, 127, 128, 129, 600});
  ExpectSameDecode(qwen3, {1500, 7});
  ExpectSameDecode(qwen3, std::vector<int>(70, 300));
}

TEST_F(DecodeAttentionTest, TakesOtherShapesAndOptions) {
  ExpectSameDecode(
      {.query_heads = 16, .kv_heads = 2, .head_dim = 64, .has_norms = false, .sliding_window = 20},
      {5, 19, 20, 200});
  ExpectSameDecode({.query_heads = 22,
                    .kv_heads = 2,
                    .head_dim = 96,
                    .rotary_dims = 32,
                    .interleaved = true,
                    .clip = 1.0f},
                   {40, 90, 3});
  ExpectSameDecode({.query_heads = 4, .kv_heads = 4, .head_dim = 32}, {33, 64});
  ExpectSameDecode({.query_heads = 4, .kv_heads = 1, .head_dim = 256}, {33, 300});
}

TEST_F(DecodeAttentionTest, TakesNormsOverAllHeads) {
  ExpectSameDecode({.query_heads = 16, .kv_heads = 16, .head_dim = 128, .norm_per_head = false},
                   {1, 129, 700});
  ExpectSameDecode(
      {.query_heads = 20, .kv_heads = 4, .head_dim = 96, .norm_per_head = false, .rotary_dims = 32},
      {40, 90, 3});
}

// Which kernels attend depends on how a step's rows belong to sequences, which its size leaves
// open.
TEST_F(DecodeAttentionTest, RecordedStepsOfOneSizeMayHoldPromptsOrSingleTokens) {
  const Shape shape = {.query_heads = 8, .kv_heads = 2, .head_dim = 64};
  const std::vector<std::vector<int>> steps = {{9, 9, 9, 9, 9, 9, 9, 9},  // not of the size
                                               {8},
                                               {0, 8},
                                               {0, 0, 8},  // a prompt
                                               {1, 1, 1, 1, 1, 1, 1, 1},
                                               {1, 1, 1, 1, 1, 1, 1, 1},  // single tokens
                                               {5, 1, 1, 1},
                                               {0, 5, 1, 1, 1},  // both
                                               {0, 0, 0, 8},
                                               {1, 1, 1, 1, 1, 1, 1, 1},
                                               {1, 1, 1, 5},
                                               {2, 2, 2, 2},
                                               {3, 3, 2}};
  const std::unique_ptr<Backend> cuda = CreateCudaBackend({}).value();
  Sequences want(shape, 8, 64, *cpu_);
  Sequences got(shape, 8, 64, *cuda);
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_LE(RelativeRms(got.Advance(steps[i]), want.Advance(steps[i])), 1e-2) << "step " << i;
  }
}

}  // namespace
}  // namespace moed::backend
