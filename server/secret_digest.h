// How secrets are kept and compared: as digests, in constant time, so that neither memory nor the
// time of an answer tells them. Fit for secrets beyond guessing (keys, generated passwords), which
// need no slow hash. Pure functions.
#pragma once

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace moed::server {

using SecretDigest = std::array<uint8_t, SHA256_DIGEST_LENGTH>;

inline SecretDigest DigestOf(absl::string_view secret) {
  SecretDigest digest;
  SHA256(reinterpret_cast<const uint8_t*>(secret.data()), secret.size(), digest.data());
  return digest;
}

inline bool SameDigest(const SecretDigest& a, const SecretDigest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace moed::server
