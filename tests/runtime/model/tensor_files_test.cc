#include "runtime/model/tensor_files.h"

#include <sys/stat.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/model/checkpoint_files.h"

namespace moed::model {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr char kIndex[] = "model.safetensors.index.json";

std::string OneTensor(const std::string& name, const std::string& bytes = "abcd") {
  return SafetensorsFile({{name, "U8", {static_cast<int64_t>(bytes.size())}, bytes}});
}

class TensorFilesTest : public ::testing::Test {
 protected:
  absl::StatusOr<TensorFiles> Open(const fs::path& path) {
    const auto opened = CheckpointDirectory::Open(path);
    if (!opened.ok()) return opened.status();
    return TensorFiles::Open(*opened);
  }
  absl::StatusOr<TensorFiles> Open() { return Open(directory_.path()); }

  // Opens a folder whose index says that tensor "a" lies in `file`.
  absl::Status OpenIndexOf(const std::string& file) {
    directory_.Write(kIndex, R"({"weight_map": {"a": ")" + file + "\"}}");
    return Open().status();
  }

  TemporaryDirectory directory_;
};

std::string ContentsOf(const TensorFiles& files, const std::string& name) {
  const StoredTensor* tensor = files.Find(name);
  if (tensor == nullptr) return "none";
  std::string bytes(tensor->entry.bytes, '\0');
  return tensor->Read(0, std::as_writable_bytes(std::span(bytes))).ok() ? bytes : "error";
}

TEST_F(TensorFilesTest, FindsTensorsOfAllShards) {
  directory_.Write("one.safetensors", OneTensor("a", "first"));
  directory_.Write("two.safetensors", OneTensor("b", "second"));
  directory_.Write(kIndex, R"({"metadata": {"total_size": 11},
                               "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  const auto files = Open();
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(ContentsOf(*files, "a"), "first");
  EXPECT_EQ(ContentsOf(*files, "b"), "second");
  EXPECT_EQ(files->Find("c"), nullptr);
}

TEST_F(TensorFilesTest, NoWeightsAreNotFoundAndTheMessageSaysWhatToDo) {
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--load-format dummy"));
}

TEST_F(TensorFilesTest, AMissingShardIsNamed) {
  const absl::Status status = OpenIndexOf("lost.safetensors");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lost.safetensors"));
}

TEST_F(TensorFilesTest, AShardWithoutAnIndexedTensorIsDamaged) {
  directory_.Write("one.safetensors", OneTensor("b"));
  const absl::Status status = OpenIndexOf("one.safetensors");
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"a\""));
}

TEST_F(TensorFilesTest, ADamagedIndexIsRejected) {
  for (const char* text : {"", "[]", "{}", R"({"weight_map": 1})", R"({"weight_map": {}})",
                           R"({"weight_map": {"a": 1}})", R"({"weight_map": {"a": ["b"]}})"}) {
    directory_.Write(kIndex, text);
    EXPECT_EQ(Open().status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST_F(TensorFilesTest, ShardNamesCannotLeaveTheDirectory) {
  const TemporaryDirectory other;
  other.Write("x.safetensors", OneTensor("a"));
  const std::string outside = other.path() / "x.safetensors";
  EXPECT_EQ(OpenIndexOf(outside).code(), StatusCode::kInvalidArgument);
  const std::string relative = "../" + other.path().filename().string() + "/x.safetensors";
  EXPECT_EQ(OpenIndexOf(relative).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenIndexOf("a/../../b").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenIndexOf("").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenIndexOf("x\\u0000.safetensors").code(), StatusCode::kInvalidArgument);
}

TEST_F(TensorFilesTest, LinksMayStayInsideButNotLeadOut) {
  directory_.Write("data/real.safetensors", OneTensor("a"));
  fs::create_symlink("data/real.safetensors", directory_.path() / "inside.safetensors");
  EXPECT_TRUE(OpenIndexOf("inside.safetensors").ok());

  const TemporaryDirectory other;
  other.Write("x.safetensors", OneTensor("a"));
  fs::create_symlink(other.path() / "x.safetensors", directory_.path() / "out.safetensors");
  fs::create_symlink(other.path(), directory_.path() / "folder");
  for (const char* name : {"out.safetensors", "folder/x.safetensors"}) {
    const absl::Status status = OpenIndexOf(name);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("link out of"));
  }
}

TEST_F(TensorFilesTest, AHuggingFaceCacheMayLinkToItsBlobs) {
  directory_.Write("models--x/blobs/0123", OneTensor("a"));
  directory_.Write("elsewhere/0123", OneTensor("a"));
  const fs::path snapshot = directory_.path() / "models--x/snapshots/abc";
  fs::create_directories(snapshot);
  fs::create_symlink("../../blobs/0123", snapshot / "model.safetensors");
  EXPECT_TRUE(Open(snapshot).ok()) << Open(snapshot).status();

  directory_.Write("models--x/blobs/0123", "short");
  EXPECT_THAT(std::string(Open(snapshot).status().message()), HasSubstr("model.safetensors"));

  fs::remove(snapshot / "model.safetensors");
  fs::create_symlink("../../../elsewhere/0123", snapshot / "model.safetensors");
  EXPECT_EQ(Open(snapshot).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TensorFilesTest, PipesDevicesAndFoldersAreRefusedAtOnce) {
  ASSERT_EQ(mkfifo((directory_.path() / "pipe").c_str(), 0600), 0);
  fs::create_directory(directory_.path() / "folder");
  fs::create_symlink("/dev/zero", directory_.path() / "zero");
  EXPECT_EQ(OpenIndexOf("pipe").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenIndexOf("folder").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenIndexOf("zero").code(), StatusCode::kInvalidArgument);
}

TEST_F(TensorFilesTest, AFileCutShortAfterOpeningIsDataLossNamingFileAndTensor) {
  directory_.Write("model.safetensors", OneTensor("weights", std::string(100, 'x')));
  const auto files = Open();
  ASSERT_TRUE(files.ok()) << files.status();
  fs::resize_file(directory_.path() / "model.safetensors", 90);
  std::string bytes(100, '\0');
  const absl::Status status =
      files->Find("weights")->Read(0, std::as_writable_bytes(std::span(bytes)));
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("weights"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
}

TEST_F(TensorFilesTest, RequireNamesWhatIsMissingOrWrong) {
  directory_.Write("model.safetensors", SafetensorsFile({{"half", "BF16", {2, 1}, "abcd"},
                                                         {"byte", "U8", {4}, "abcd"}}));
  const auto files = Open();
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(files->Require({"absent", "half"}, {2, 1}).ok());
  const auto message = [&](const char* name, const std::vector<int64_t>& shape) {
    return std::string(files->Require({name}, shape).status().message());
  };
  EXPECT_THAT(message("absent", {2}), HasSubstr("\"absent\" is missing"));
  EXPECT_THAT(message("half", {1, 2}),
              HasSubstr("has shape [2, 1], but config.json implies [1, 2]"));
  EXPECT_THAT(message("byte", {4}), HasSubstr("is U8"));
}

TEST(CheckpointDirectoryTest, AFileAsDirectoryIsNotFound) {
  const TemporaryDirectory directory;
  directory.Write("config.json", "{}");
  EXPECT_EQ(CheckpointDirectory::Open(directory.path() / "config.json").status().code(),
            StatusCode::kNotFound);
  EXPECT_EQ(CheckpointDirectory::Open(directory.path() / "nothing").status().code(),
            StatusCode::kNotFound);
  EXPECT_EQ(CheckpointDirectory::Open("").status().code(), StatusCode::kNotFound);
}

TEST(CheckpointDirectoryTest, TextFilesHaveALimit) {
  const TemporaryDirectory directory;
  directory.Write("config.json", std::string(100, ' '));
  const auto opened = CheckpointDirectory::Open(directory.path());
  EXPECT_TRUE(opened->ReadFile("config.json", 100).ok());
  EXPECT_EQ(opened->ReadFile("config.json", 99).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moed::model
