#include "server/api_keys.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "runtime/text/read_file.h"

namespace moed::server {
namespace {

// 16 characters of base64 are 96 bits: beyond guessing.
constexpr size_t kMinKeyBytes = 16;

}  // namespace

absl::StatusOr<ApiKeys::Entry> ApiKeys::ParseLine(absl::string_view line) {
  static const std::map<absl::string_view, Access> kRights = {
      {"inference", Access::kInference}, {"observe", Access::kObserve}, {"admin", Access::kAdmin}};
  const std::vector<absl::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  if (words[0].size() < kMinKeyBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the key has ", words[0].size(), " characters; at least ", kMinKeyBytes, " are needed"));
  }
  Entry entry = {.digest = DigestOf(words[0]), .rights = {}};
  for (size_t i = 1; i < words.size(); ++i) {
    const auto right = kRights.find(words[i]);
    if (right == kRights.end()) {
      return absl::InvalidArgumentError("a right is none of inference, observe and admin");
    }
    entry.rights.push_back(right->second);
  }
  if (entry.rights.empty()) entry.rights = {Access::kInference, Access::kObserve};
  return entry;
}

absl::StatusOr<std::vector<ApiKeys::Entry>> ApiKeys::Read(const std::string& path) {
  const absl::StatusOr<std::string> text = text::ReadFile(path);
  if (!text.ok()) return text.status();
  std::vector<Entry> entries;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    ++number;
    const size_t begin = line.find_first_not_of(" \t\r");
    if (begin == line.npos || line[begin] == '#') continue;
    absl::StatusOr<Entry> entry = ParseLine(line);
    // Without the line itself: it may hold a key.
    if (!entry.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ", line ", number, ": ", entry.status().message()));
    }
    entries.push_back(*std::move(entry));
  }
  if (entries.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " holds no key"));
  return entries;
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(path));
  absl::Status status = keys->Reload();
  if (!status.ok()) return status;
  return keys;
}

absl::Status ApiKeys::Reload() {
  absl::StatusOr<std::vector<Entry>> entries = Read(path_);
  if (!entries.ok()) return entries.status();
  absl::MutexLock lock(&mutex_);
  entries_ = *std::move(entries);
  return absl::OkStatus();
}

absl::Status ApiKeys::Check(absl::string_view key, Access access) const {
  const SecretDigest digest = DigestOf(key);
  bool known = false, allowed = false;
  absl::ReaderMutexLock lock(&mutex_);
  // All of them, always, and each in full: the time says nothing about which one matched, or how
  // far.
  for (const Entry& entry : entries_) {
    if (!SameDigest(entry.digest, digest)) continue;
    known = true;
    allowed |= std::find(entry.rights.begin(), entry.rights.end(), access) != entry.rights.end();
  }
  if (!known) {
    return absl::UnauthenticatedError(
        "a valid key is needed: send the metadata `authorization: Bearer KEY`");
  }
  if (!allowed) return absl::PermissionDeniedError("this key may not call this method");
  return absl::OkStatus();
}

bool ApiKeys::AnyMay(Access access) const {
  absl::ReaderMutexLock lock(&mutex_);
  return std::any_of(entries_.begin(), entries_.end(), [access](const Entry& entry) {
    return std::find(entry.rights.begin(), entry.rights.end(), access) != entry.rights.end();
  });
}

size_t ApiKeys::size() const {
  absl::ReaderMutexLock lock(&mutex_);
  return entries_.size();
}

}  // namespace moed::server
