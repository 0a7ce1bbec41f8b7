#include "server/zip_archive.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/tokenizer_bundle.h"

namespace moed::server {
namespace {

// The check value of CRC-32 is that of "123456789".
TEST(ZipArchiveTest, StoresNameSizesAndChecksum) {
  ZipArchive archive;
  archive.Add("a.txt", "123456789");
  const std::string bytes = std::move(archive).Finish();
  EXPECT_EQ(bytes.substr(0, 4), "PK\x03\x04");
  EXPECT_EQ(bytes.substr(14, 4), "\x26\x39\xf4\xcb");
  EXPECT_EQ(bytes.substr(30, 14), "a.txt123456789");
  EXPECT_EQ(bytes.substr(bytes.size() - 22, 4), "PK\x05\x06");
}

// Python's zipfile checks every checksum and offset.
TEST(ZipArchiveTest, AnotherProgramReadsTheTokenizerBundle) {
  const auto bundle = PackTokenizer(MOED_DEMO_MODEL);
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  EXPECT_EQ(bundle->sha256.size(), 64u);
  const std::string path = absl::StrCat(testing::TempDir(), "/moed_bundle.zip");
  std::ofstream(path, std::ios::binary) << bundle->zip;
  const std::string command = absl::StrCat(
      "python3 -c \"import zipfile; z = zipfile.ZipFile('", path,
      "'); assert z.testzip() is None; ", "assert z.read('tokenizer.json') == open('",
      MOED_DEMO_MODEL,
      "/tokenizer.json', 'rb').read(); assert 'chat_template.jinja' in z.namelist()\"");
  EXPECT_EQ(std::system(command.c_str()), 0);
  std::remove(path.c_str());
}

TEST(ZipArchiveTest, ADirectoryWithoutTokenizerHasNoBundle) {
  EXPECT_TRUE(absl::IsNotFound(PackTokenizer(testing::TempDir()).status()));
}

}  // namespace
}  // namespace moed::server
