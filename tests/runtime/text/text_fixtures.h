// Tokenizers and templates for the tests of this folder.
#pragma once

#include <gtest/gtest.h>
#include <pthread.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace moed::text {

// A folder of golden/, or the demo checkpoint.
inline std::string DirectoryOf(const std::string& kind) {
  const std::string root = MOED_SOURCE_DIR;
  return kind == "demo" ? root + "/models/demo" : root + "/tests/runtime/text/golden/" + kind;
}

inline std::unique_ptr<Tokenizer> LoadGolden(const std::string& kind) {
  auto tokenizer = LoadTokenizer(DirectoryOf(kind));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

inline std::string Contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A checkpoint directory of one test, with files written as told.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::path(testing::TempDir()) /
            (std::string(test->test_suite_name()) + "." + test->name());
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }

  std::string path() const { return path_.string(); }
  void Write(const std::string& name, std::string_view contents) const {
    std::ofstream(path_ / name, std::ios::binary) << contents;
  }

 private:
  std::filesystem::path path_;
};

// The chat template `jinja`, with the special tokens of a golden tokenizer.
inline absl::StatusOr<std::unique_ptr<ChatTemplate>> TemplateOf(std::string_view jinja,
                                                                const std::string& kind) {
  const ScratchDirectory directory;
  directory.Write("chat_template.jinja", jinja);
  directory.Write("tokenizer_config.json", Contents(DirectoryOf(kind) + "/tokenizer_config.json"));
  return LoadChatTemplate(directory.path());
}

// Servers run handlers on stacks that they choose; 512 KiB is small.
constexpr size_t kSmallStackBytes = 512 << 10;

inline void RunOnSmallStack(std::function<void()> body) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kSmallStackBytes), 0);
  pthread_t thread;
  const auto run = [](void* argument) -> void* {
    (*static_cast<std::function<void()>*>(argument))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, &body), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

}  // namespace moed::text
