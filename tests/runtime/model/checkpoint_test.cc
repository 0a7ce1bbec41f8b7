#include "runtime/model/checkpoint.h"

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/tensor_files.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/checkpoint_files.h"

namespace moed::model {
namespace {

using absl::StatusCode;
using backend::BFloat16;
using moed::testing::GoldenCaseNames;
using moed::testing::GoldenPath;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const fs::path& directory) {
  return OpenCheckpoint({.directory = directory});
}

std::vector<BFloat16> ReadBFloat16(const TensorFiles& files, const std::string& name) {
  const StoredTensor* tensor = files.Find(name);
  EXPECT_NE(tensor, nullptr) << name;
  std::vector<BFloat16> values(tensor->entry.bytes / sizeof(BFloat16));
  EXPECT_TRUE(tensor->Read(0, std::as_writable_bytes(std::span(values))).ok());
  return values;
}

std::vector<std::byte> Encode(const backend::ExpertFormat& format, std::vector<BFloat16> gate,
                              std::vector<BFloat16> up, std::vector<BFloat16> down) {
  const auto matrix = [&](std::vector<BFloat16>& values, int64_t rows, int64_t columns) {
    return backend::Tensor(values.data(), backend::DType::kBF16, {rows, columns});
  };
  std::vector<std::byte> blob(format.blob_bytes());
  const int64_t h = format.hidden();
  const int64_t i = format.intermediate();
  format.Encode(matrix(gate, i, h), matrix(up, i, h), matrix(down, h, i), blob);
  return blob;
}

class GoldenCheckpointTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenCheckpointTest, HasEveryTensorThatItsConfigImplies) {
  const auto golden = moed::testing::LoadGoldenCase(GetParam());
  ASSERT_TRUE(golden.ok()) << golden.status();
  const auto opened = Open(golden->checkpoint_directory);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  EXPECT_EQ(checkpoint.Has(DenseRole::kLmHead, 0), !checkpoint.config().tie_embeddings);
  std::vector<std::byte> blob(checkpoint.experts().format().blob_bytes());
  for (int layer = 0; layer < checkpoint.config().num_layers(); ++layer) {
    const bool is_moe = checkpoint.config().layers[layer].is_moe;
    EXPECT_EQ(checkpoint.Has(DenseRole::kRouter, layer), is_moe);
    EXPECT_EQ(checkpoint.Has(DenseRole::kMlpUp, layer), !is_moe);
    for (int role = 0; role < kNumDenseRoles; ++role) {
      const auto tensor = checkpoint.ReadDense(static_cast<DenseRole>(role), layer);
      EXPECT_EQ(tensor.ok(), checkpoint.Has(static_cast<DenseRole>(role), layer));
    }
    for (int expert = 0; expert < checkpoint.config().router.num_experts; ++expert) {
      EXPECT_EQ(checkpoint.experts().Read({layer, expert}, {}, blob).ok(), is_moe);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenCheckpointTest, ::testing::ValuesIn(GoldenCaseNames()),
                         [](const auto& test) { return test.param; });

TEST(CheckpointTest, ReadsADenseTensorAsItIsStored) {
  const auto checkpoint = Open(GoldenPath("qwen2_moe"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto bias = (*checkpoint)->ReadDense(DenseRole::kKeyBias, 2);
  ASSERT_TRUE(bias.ok()) << bias.status();
  const auto files = TensorFiles::Open(*CheckpointDirectory::Open(GoldenPath("qwen2_moe")));
  const std::vector<BFloat16> stored = ReadBFloat16(*files, "model.layers.2.self_attn.k_proj.bias");
  EXPECT_EQ(bias->view.dtype(), backend::DType::kBF16);
  EXPECT_EQ(bias->view.rank(), 1);
  EXPECT_EQ(std::vector<BFloat16>(bias->view.As<BFloat16>(), bias->view.As<BFloat16>() + 32),
            stored);
}

TEST(CheckpointTest, AnExpertIsItsGateUpAndDownWhereverTheyLie) {
  for (const char* name : {"qwen3_moe_sharded_untied", "qwen3_moe"}) {
    const auto checkpoint = Open(GoldenPath(name));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const ExpertSource& experts = (*checkpoint)->experts();
    std::vector<std::byte> blob(experts.format().blob_bytes());
    ASSERT_TRUE(experts.Read({1, 5}, {}, blob).ok());
    const auto files = TensorFiles::Open(*CheckpointDirectory::Open(GoldenPath(name)));
    const std::string prefix = "model.layers.1.mlp.experts.5.";
    EXPECT_EQ(blob, Encode(experts.format(), ReadBFloat16(*files, prefix + "gate_proj.weight"),
                           ReadBFloat16(*files, prefix + "up_proj.weight"),
                           ReadBFloat16(*files, prefix + "down_proj.weight")));
  }
}

TEST(CheckpointTest, MixtralCallsGateW1UpW3DownW2) {
  const auto checkpoint = Open(GoldenPath("mixtral"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ExpertSource& experts = (*checkpoint)->experts();
  std::vector<std::byte> blob(experts.format().blob_bytes());
  ASSERT_TRUE(experts.Read({2, 3}, {}, blob).ok());
  const auto files = TensorFiles::Open(*CheckpointDirectory::Open(GoldenPath("mixtral")));
  const std::string prefix = "model.layers.2.block_sparse_moe.experts.3.";
  EXPECT_EQ(blob, Encode(experts.format(), ReadBFloat16(*files, prefix + "w1.weight"),
                         ReadBFloat16(*files, prefix + "w3.weight"),
                         ReadBFloat16(*files, prefix + "w2.weight")));
}

TEST(CheckpointTest, AFusedExpertIsASliceOfItsLayer) {
  const auto checkpoint = Open(GoldenPath("qwen2_moe_linear_fused"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ExpertSource& experts = (*checkpoint)->experts();
  std::vector<std::byte> blob(experts.format().blob_bytes());
  ASSERT_TRUE(experts.Read({0, 6}, {}, blob).ok());
  const auto files =
      TensorFiles::Open(*CheckpointDirectory::Open(GoldenPath("qwen2_moe_linear_fused")));
  const auto gate_up = ReadBFloat16(*files, "model.layers.0.mlp.experts.gate_up_proj");
  const auto down = ReadBFloat16(*files, "model.layers.0.mlp.experts.down_proj");
  const auto slice = [](const std::vector<BFloat16>& all, int64_t index) {
    constexpr int64_t kMatrix = 64 * 16;
    return std::vector<BFloat16>(all.begin() + index * kMatrix,
                                 all.begin() + (index + 1) * kMatrix);
  };
  EXPECT_EQ(blob, Encode(experts.format(), slice(gate_up, 12), slice(gate_up, 13), slice(down, 6)));
}

TEST(CheckpointTest, GenerationConfigsEndTokensComeBeforeTheConfigs) {
  const TemporaryDirectory directory;
  CopyGolden("mixtral", directory);
  EXPECT_THAT((*Open(directory.path()))->generation().eos_token_ids, ElementsAre(0));
  directory.Write("generation_config.json", R"({"eos_token_id": [3, 4], "top_k": 5})");
  const auto checkpoint = Open(directory.path());
  EXPECT_THAT((*checkpoint)->generation().eos_token_ids, ElementsAre(3, 4));
  EXPECT_EQ((*checkpoint)->generation().top_k, 5);
  directory.Write("generation_config.json", R"({"top_k": -5})");
  EXPECT_EQ(Open(directory.path()).status().code(), StatusCode::kInvalidArgument);
}

TEST(CheckpointTest, WhatIsNotThereIsNamed) {
  const TemporaryDirectory directory;
  EXPECT_EQ(Open(directory.path() / "nothing").status().code(), StatusCode::kNotFound);
  const absl::Status no_config = Open(directory.path()).status();
  EXPECT_EQ(no_config.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(no_config.message()), HasSubstr("config.json"));
}

TEST(CheckpointTest, AConfigThatDoesNotFitItsTensorsIsRefused) {
  const TemporaryDirectory directory;
  CopyGolden("qwen3_moe", directory);
  const std::string config = ReadText(directory.path() / "config.json");
  const auto error_with = [&](const char* changes) {
    auto changed = nlohmann::json::parse(config);
    changed.update(nlohmann::json::parse(changes));
    directory.Write("config.json", changed.dump());
    return Open(directory.path()).status().ToString();
  };
  EXPECT_THAT(error_with(R"({"hidden_size": 128})"), HasSubstr("embed_tokens"));
  EXPECT_THAT(error_with(R"({"moe_intermediate_size": 32})"), HasSubstr("gate_proj"));
  EXPECT_THAT(error_with(R"({"num_hidden_layers": 4})"), HasSubstr("layers.3."));
  EXPECT_THAT(error_with(R"({"num_local_experts": 9, "num_experts": 9})"),
              HasSubstr("config.json implies"));
  EXPECT_THAT(error_with(R"({"attention_bias": true})"), HasSubstr("q_proj.bias"));
}

TEST(CheckpointTest, AnExpertThatDoesNotExistIsInvalid) {
  for (const LoadFormat format : {LoadFormat::kAuto, LoadFormat::kDummy}) {
    const auto checkpoint =
        OpenCheckpoint({.directory = GoldenPath("qwen3_moe_dense_layers"), .load_format = format});
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    std::vector<std::byte> blob((*checkpoint)->experts().format().blob_bytes());
    for (const cache::ExpertKey key :
         {cache::ExpertKey{-1, 0}, {5, 0}, {1, -1}, {1, 8}, {0, 0} /* a dense layer */}) {
      EXPECT_EQ((*checkpoint)->experts().Read(key, {}, blob).code(), StatusCode::kInvalidArgument)
          << key.layer << "," << key.expert;
    }
  }
}

TEST(CheckpointTest, AnExpertWhoseFileWasCutShortIsDataLoss) {
  const TemporaryDirectory directory;
  CopyGolden("olmoe", directory);
  const auto checkpoint = Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  fs::resize_file(directory.path() / "model.safetensors",
                  fs::file_size(directory.path() / "model.safetensors") / 2);
  std::vector<std::byte> blob((*checkpoint)->experts().format().blob_bytes());
  int lost = 0;
  for (int layer = 0; layer < 3; ++layer) {
    for (int expert = 0; expert < 12; ++expert) {
      const absl::Status status = (*checkpoint)->experts().Read({layer, expert}, {}, blob);
      if (status.ok()) continue;
      ++lost;
      EXPECT_EQ(status.code(), StatusCode::kDataLoss);
      EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
      EXPECT_THAT(std::string(status.message()), HasSubstr("mlp.experts."));
    }
  }
  EXPECT_GT(lost, 0);
  EXPECT_LT(lost, 36);
}

}  // namespace
}  // namespace moed::model
