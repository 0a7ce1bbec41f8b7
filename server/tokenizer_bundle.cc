#include "server/tokenizer_bundle.h"

#include <openssl/sha.h>

#include <cstdint>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/text/read_file.h"
#include "server/zip_archive.h"

namespace moed::server {
namespace {

constexpr const char* kFiles[] = {"tokenizer.json",      "tokenizer_config.json",
                                  "config.json",         "generation_config.json",
                                  "chat_template.jinja", "special_tokens_map.json"};

std::string Sha256Hex(const std::string& bytes) {
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), digest);
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest), sizeof(digest)});
}

}  // namespace

absl::StatusOr<TokenizerBundle> PackTokenizer(const std::string& directory) {
  ZipArchive archive;
  for (const char* name : kFiles) {
    const absl::StatusOr<std::string> contents = text::ReadFile(absl::StrCat(directory, "/", name));
    if (absl::IsNotFound(contents.status()) && name != kFiles[0]) continue;
    if (!contents.ok()) return contents.status();
    archive.Add(name, *contents);
  }
  TokenizerBundle bundle;
  bundle.zip = std::move(archive).Finish();
  bundle.sha256 = Sha256Hex(bundle.zip);
  return bundle;
}

}  // namespace moed::server
