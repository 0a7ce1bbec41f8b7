#include "server/basic_auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace moed::server {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string Hex(absl::string_view password) {
  const SecretDigest digest = DigestOf(password);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

std::string Header(const std::string& credentials) {
  return "Basic " + absl::Base64Escape(credentials);
}

class BasicAuthTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<BasicAuth>> Load(const std::string& text) {
    std::ofstream(path_) << text;
    return BasicAuth::Load(path_);
  }
  const std::string path_ = testing::TempDir() + "/basic_auth_test";
};

TEST(SecretDigestTest, IsWhatSha256sumPrints) {
  EXPECT_EQ(Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(BasicAuthTest, UsersComeInWithTheirPasswordAlone) {
  const auto auth = Load(absl::StrCat("# two\n\nprometheus:", Hex("a-long-password"),
                                      "\n  grafana:", Hex("another:password"), "  \r\n"));
  ASSERT_TRUE(auth.ok()) << auth.status();
  EXPECT_EQ((*auth)->size(), 2u);
  const struct {
    std::string header;
    bool allowed;
  } cases[] = {
      {Header("prometheus:a-long-password"), true},
      {"bAsIc " + absl::Base64Escape("prometheus:a-long-password"), true},
      {Header("grafana:another:password"), true},
      {Header("grafana:a-long-password"), false},
      {Header("prometheus:a-long-passworD"), false},
      {Header("prometheus:"), false},
      {Header("prometheus"), false},
      {Header(":a-long-password"), false},
      {Header(""), false},
      {"Basic not base64!", false},
      {"Basic ", false},
      {"Basic", false},
      {"", false},
      {"Bearer a-long-password", false},
  };
  for (const auto& [header, allowed] : cases) EXPECT_EQ((*auth)->Allows(header), allowed) << header;
}

TEST_F(BasicAuthTest, AFileThatIsWrongIsRefusedWithoutShowingIt) {
  for (const std::string& line :
       {std::string("user:plain-password"), std::string("only-a-name"), ":" + Hex("x"),
        "user:" + Hex("x").substr(1), "user:" + Hex("x") + " more"}) {
    const absl::Status status = Load("# comment\n" + line + "\n").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("plain")));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Load("\n# nobody\n").status()));
  EXPECT_TRUE(absl::IsNotFound(BasicAuth::Load("/no/such/file").status()));
}

TEST_F(BasicAuthTest, ReloadReplacesAllUsersOrNone) {
  const auto auth = Load("a:" + Hex("first"));
  ASSERT_TRUE(auth.ok());
  std::ofstream(path_) << "b:" << Hex("second");
  EXPECT_TRUE((*auth)->Reload().ok());
  EXPECT_FALSE((*auth)->Allows(Header("a:first")));
  EXPECT_TRUE((*auth)->Allows(Header("b:second")));
  std::ofstream(path_) << "damaged";
  EXPECT_FALSE((*auth)->Reload().ok());
  EXPECT_TRUE((*auth)->Allows(Header("b:second")));
}

}  // namespace
}  // namespace moed::server
