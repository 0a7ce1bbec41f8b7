// The demo model with one expert, in the middle and not in the sample that room for escapes is
// chosen by, whose weights lie outside of their windows: converted, and encoded while loading.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/model/bf12_survey.h"
#include "runtime/model/convert_checkpoint.h"
#include "runtime/model/model_runner.h"
#include "tests/runtime/model/checkpoint_files.h"
#include "tests/runtime/model/converted_checkpoint.h"
#include "tests/runtime/model/greedy_tokens.h"
#include "tests/runtime/model/host_as_device.h"

namespace moed::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using enum ExpertFormatPreference;
constexpr auto kServedBf16 = backend::ExpertFormatKind::kBF16;
constexpr auto kServedBf12 = backend::ExpertFormatKind::kBF12;

constexpr cache::ExpertKey kWild = {.layer = 3, .expert = 17};
constexpr int64_t kHidden = 128;
// Escapes in each of a tile's 32 gate rows, of which all but seven are listed. With the first, one
// tile's list makes every expert take 0.83 of its bf16 bytes; with the second 1.02.
constexpr int kPays = 10;
constexpr int kDoesNotPay = 50;
constexpr int kListed = 32 * (kPays - 7);

class WildExpertTest : public ::testing::Test {
 protected:
  // Makes the first `escapes` gate weights of 32 neurons tiny.
  void MakeWild(int escapes) {
    CopyGolden("demo", folder_);
    const std::filesystem::path path = folder_.path() / "model.safetensors";
    std::string file = ReadText(path);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
    const auto header = nlohmann::json::parse(file.substr(8, header_bytes));
    const std::string name = absl::StrCat("model.layers.", kWild.layer, ".mlp.experts.",
                                          kWild.expert, ".gate_proj.weight");
    const size_t begin = 8 + header_bytes + header[name]["data_offsets"][0].get<size_t>();
    constexpr uint16_t kTiny = 0x0080;
    for (int row = 0; row < 32; ++row) {
      for (int i = 0; i < escapes; ++i) {
        std::memcpy(&file[begin + 2 * (row * kHidden + i)], &kTiny, sizeof(kTiny));
      }
    }
    std::ofstream(path, std::ios::binary) << file;
  }

  absl::StatusOr<std::unique_ptr<ModelRunner>> Create(std::unique_ptr<backend::Backend> backend,
                                                      ExpertFormatPreference preference) {
    ModelRunnerOptions options = {.memory_limit_bytes = int64_t{512} << 20,
                                  .max_num_seqs = 4,
                                  .max_num_batched_tokens = 64,
                                  .max_model_len = 128,
                                  .io_threads = 2};
    options.expert_format = preference;
    if (backend->Memory().has_value()) options.kv_cache_bytes = int64_t{16} << 20;
    return ModelRunner::Create(std::move(options), OpenGood(folder_.path()), std::move(backend));
  }

  std::unique_ptr<ModelRunner> OnDevice(ExpertFormatPreference preference) {
    auto runner = Create(std::make_unique<testing::HostAsDevice>(2), preference);
    EXPECT_TRUE(runner.ok()) << runner.status();
    EXPECT_NE((*runner)->cold_path(), "page");
    return *std::move(runner);
  }
  std::unique_ptr<ModelRunner> OnCpu(ExpertFormatPreference preference) {
    auto runner = Create(*backend::CreateCpuBackend({.num_threads = 2}), preference);
    EXPECT_TRUE(runner.ok()) << runner.status();
    return *std::move(runner);
  }

  TemporaryDirectory folder_;
};

// A greedy continuation of a short prompt.
std::vector<int32_t> Continue(ModelRunner& runner) {
  return testing::GreedyTokens(runner, {5, 9, 77, 3, 120}, 24);
}

TEST_F(WildExpertTest, ConvertMakesRoomForItIfThatPays) {
  MakeWild(kPays);
  const TemporaryDirectory target;
  const auto result = ConvertCheckpoint(*OpenGood(folder_.path()),
                                        {.destination = target.path() / "bf12", .threads = 2});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->survey.wildest, kWild);
  EXPECT_GE(result->survey.most_in_tile, kListed);
  EXPECT_GE(result->survey.listed_escapes, result->survey.most_in_tile);
  EXPECT_LE(result->format.tile_escapes(), result->survey.most_in_tile + 16);
}

TEST_F(WildExpertTest, ConvertRefusesWhatDoesNotPayAndNamesIt) {
  MakeWild(kDoesNotPay);
  const TemporaryDirectory target;
  const absl::Status status =
      ConvertCheckpoint(*OpenGood(folder_.path()),
                        {.destination = target.path() / "bf12", .threads = 2})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.ToString(), AllOf(HasSubstr("stay bf16"), HasSubstr("expert 17 of layer 3")));
}

TEST_F(WildExpertTest, LoadingMeasuresEveryExpertAndMakesRoomForIt) {
  MakeWild(kPays);
  const std::unique_ptr<ModelRunner> bf16 = OnDevice(kBF16);
  EXPECT_EQ(bf16->listed_escapes(), std::nullopt);
  const std::vector<int32_t> expected = Continue(*bf16);
  for (const bool on_device : {true, false}) {
    // A CPU encodes only when told.
    const std::unique_ptr<ModelRunner> runner = on_device ? OnDevice(kAuto) : OnCpu(kBF12);
    EXPECT_EQ(runner->expert_format().kind(), kServedBf12);
    EXPECT_GE(runner->expert_format().tile_escapes(), kListed);
    EXPECT_GE(runner->listed_escapes().value_or(0), kListed);
    EXPECT_THAT(runner->expert_format_note(),
                AllOf(HasSubstr("expert 17 of layer 3"), HasSubstr("every expert was measured")));
    EXPECT_EQ(Continue(*runner), expected);
  }
}

TEST_F(WildExpertTest, LoadingFallsBackToBf16WhereRoomForItDoesNotPay) {
  MakeWild(kDoesNotPay);
  const std::unique_ptr<ModelRunner> runner = OnDevice(kAuto);
  EXPECT_EQ(runner->expert_format().kind(), kServedBf16);
  EXPECT_EQ(runner->listed_escapes(), std::nullopt);
  EXPECT_THAT(runner->expert_format_note(),
              AllOf(HasSubstr("expert 17 of layer 3"), HasSubstr("experts stay bf16")));
  EXPECT_EQ(runner->expert_format_note().find('\n'), std::string::npos);
  EXPECT_EQ(Continue(*runner), Continue(*OnDevice(kBF16)));
}

TEST_F(WildExpertTest, Bf12ThatWasAskedForIsServedWhateverItTakes) {
  MakeWild(kDoesNotPay);
  const std::unique_ptr<ModelRunner> runner = OnDevice(kBF12);
  EXPECT_EQ(runner->expert_format().kind(), kServedBf12);
  EXPECT_GT(runner->expert_format().stored_ratio(), 1);
  EXPECT_EQ(Continue(*runner), Continue(*OnDevice(kBF16)));
}

}  // namespace
}  // namespace moed::model
