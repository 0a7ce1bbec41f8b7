#include "server/basic_auth.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/text/read_file.h"

namespace moed::server {
namespace {

constexpr absl::string_view kScheme = "basic ";

bool IsHexDigest(absl::string_view text) {
  return text.size() == 2 * SHA256_DIGEST_LENGTH &&
         std::all_of(text.begin(), text.end(), absl::ascii_isxdigit);
}

}  // namespace

absl::StatusOr<BasicAuth::User> BasicAuth::ParseLine(absl::string_view line) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(line, absl::MaxSplits(':', 1));
  if (parts.first.empty() || !IsHexDigest(parts.second)) {
    return absl::InvalidArgumentError(
        "it is not USER:DIGEST, the digest being what `printf %s PASSWORD | sha256sum` prints");
  }
  User user = {.name = DigestOf(parts.first), .password = {}};
  const std::string bytes = absl::HexStringToBytes(parts.second);
  std::copy(bytes.begin(), bytes.end(), user.password.begin());
  return user;
}

absl::StatusOr<std::vector<BasicAuth::User>> BasicAuth::Read(const std::string& path) {
  const absl::StatusOr<std::string> text = text::ReadFile(path);
  if (!text.ok()) return text.status();
  std::vector<User> users;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    absl::StatusOr<User> user = ParseLine(line);
    // Without the line itself: it may hold a password.
    if (!user.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ", line ", number, ": ", user.status().message()));
    }
    users.push_back(*std::move(user));
  }
  if (users.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " names no user"));
  return users;
}

absl::StatusOr<std::unique_ptr<BasicAuth>> BasicAuth::Load(const std::string& path) {
  std::unique_ptr<BasicAuth> auth(new BasicAuth(path));
  absl::Status status = auth->Reload();
  if (!status.ok()) return status;
  return auth;
}

absl::Status BasicAuth::Reload() {
  absl::StatusOr<std::vector<User>> users = Read(path_);
  if (!users.ok()) return users.status();
  absl::MutexLock lock(&mutex_);
  users_ = *std::move(users);
  return absl::OkStatus();
}

bool BasicAuth::Allows(absl::string_view authorization) const {
  if (authorization.size() < kScheme.size() ||
      absl::AsciiStrToLower(authorization.substr(0, kScheme.size())) != kScheme) {
    return false;
  }
  std::string decoded;
  if (!absl::Base64Unescape(authorization.substr(kScheme.size()), &decoded)) return false;
  const std::pair<absl::string_view, absl::string_view> given =
      absl::StrSplit(decoded, absl::MaxSplits(':', 1));
  const SecretDigest name = DigestOf(given.first);
  const SecretDigest password = DigestOf(given.second);
  bool allowed = false;
  absl::ReaderMutexLock lock(&mutex_);
  // All of them, always, and both in full: the time says nothing about who exists.
  for (const User& user : users_) {
    const bool same_name = SameDigest(user.name, name);
    const bool same_password = SameDigest(user.password, password);
    allowed |= same_name && same_password;
  }
  return allowed;
}

size_t BasicAuth::size() const {
  absl::ReaderMutexLock lock(&mutex_);
  return users_.size();
}

}  // namespace moed::server
