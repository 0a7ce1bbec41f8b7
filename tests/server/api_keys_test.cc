#include "server/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "server/method_access.h"

namespace moed::server {
namespace {

using testing::HasSubstr;
using testing::Not;

class ApiKeysTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& text) {
    std::ofstream(path_) << text;
    return ApiKeys::Load(path_);
  }
  const std::string path_ = testing::TempDir() + "/api_keys_test";
};

TEST_F(ApiKeysTest, KeysHaveTheRightsOfTheirLine) {
  const auto keys = Load(
      "# comment\n\n0123456789abcdef\n  fedcba9876543210\tobserve admin\r\nlast-line-without-end");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ((*keys)->size(), 3u);
  const struct {
    const char* key;
    Access access;
    absl::StatusCode code;
  } cases[] = {
      {"0123456789abcdef", Access::kInference, absl::StatusCode::kOk},
      {"0123456789abcdef", Access::kObserve, absl::StatusCode::kOk},
      {"0123456789abcdef", Access::kAdmin, absl::StatusCode::kPermissionDenied},
      {"0123456789abcdef", Access::kNobody, absl::StatusCode::kPermissionDenied},
      {"fedcba9876543210", Access::kAdmin, absl::StatusCode::kOk},
      {"fedcba9876543210", Access::kInference, absl::StatusCode::kPermissionDenied},
      {"last-line-without-end", Access::kInference, absl::StatusCode::kOk},
      {"0123456789abcde", Access::kInference, absl::StatusCode::kUnauthenticated},
      {"0123456789abcdef ", Access::kInference, absl::StatusCode::kUnauthenticated},
      {"", Access::kInference, absl::StatusCode::kUnauthenticated},
      {"#", Access::kInference, absl::StatusCode::kUnauthenticated},
  };
  for (const auto& [key, access, code] : cases) {
    EXPECT_EQ((*keys)->Check(key, access).code(), code) << key;
  }
}

TEST_F(ApiKeysTest, AFileThatIsWrongIsRefusedWithoutShowingKeys) {
  for (const char* text : {"", "# none\n", "short\n", "0123456789abcdef secret-right\n"}) {
    const absl::Status status = Load(text).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text;
    EXPECT_THAT(
        std::string(status.message()),
        testing::AllOf(HasSubstr(path_), Not(HasSubstr("0123456789")), Not(HasSubstr("secret"))));
  }
  EXPECT_TRUE(absl::IsNotFound(ApiKeys::Load("/no/such/file").status()));
}

TEST_F(ApiKeysTest, ReloadReplacesAllKeysOrNone) {
  const auto keys = Load("0123456789abcdef\n");
  ASSERT_TRUE(keys.ok());
  std::ofstream(path_) << "short";
  EXPECT_FALSE((*keys)->Reload().ok());
  EXPECT_TRUE((*keys)->Check("0123456789abcdef", Access::kInference).ok());
  std::ofstream(path_) << "another-key-of-length";
  EXPECT_TRUE((*keys)->Reload().ok());
  EXPECT_FALSE((*keys)->Check("0123456789abcdef", Access::kInference).ok());
}

TEST(MethodAccessTest, WhatIsNotListedMayNobody) {
  EXPECT_EQ(AccessOf("/moed.v1.Inference/Generate"), Access::kInference);
  EXPECT_EQ(AccessOf("/moed.v1.Inference/generate"), Access::kNobody);
  EXPECT_EQ(AccessOf("/moed.v1.Inference/Generate/"), Access::kNobody);
  EXPECT_EQ(AccessOf(""), Access::kNobody);
}

}  // namespace
}  // namespace moed::server
