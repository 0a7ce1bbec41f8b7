#include "server/model_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace moed::server {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class ModelDirectoryTest : public testing::Test {
 protected:
  ModelDirectoryTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }

  static std::string ErrorOf(const std::string& model) {
    const auto directory = FindModelDirectory(model);
    EXPECT_TRUE(absl::IsNotFound(directory.status())) << directory.status();
    return std::string(directory.status().message());
  }

  const std::string folder_ = testing::TempDir() + "/model_directory_test";
};

TEST_F(ModelDirectoryTest, ADirectoryWithAConfigurationIsTakenAsItIsNamed) {
  EXPECT_EQ(*FindModelDirectory(MOED_DEMO_MODEL), MOED_DEMO_MODEL);
  EXPECT_TRUE(std::filesystem::equivalent(*FindModelDirectory(""), MOED_DEMO_MODEL));
}

TEST_F(ModelDirectoryTest, AMissingDirectoryIsNamedWithWhatToDo) {
  EXPECT_THAT(ErrorOf("/no/such/checkpoint"),
              AllOf(StartsWith("/no/such/checkpoint: No such file or directory; --model"),
                    HasSubstr("config.json"), HasSubstr("safetensors"), HasSubstr("hf download")));
}

TEST_F(ModelDirectoryTest, WhatIsNoCheckpointsDirectoryIsNamedToo) {
  EXPECT_THAT(ErrorOf(folder_), StartsWith(folder_ + "/config.json: No such file"));
  std::ofstream(folder_ + "/model.safetensors") << "weights";
  EXPECT_THAT(ErrorOf(folder_ + "/model.safetensors"),
              StartsWith(folder_ + "/model.safetensors: not a directory; --model"));
  std::filesystem::create_directories(folder_ + "/config.json");
  EXPECT_THAT(ErrorOf(folder_), StartsWith(folder_ + "/config.json: not a file; --model"));
}

}  // namespace
}  // namespace moed::server
