// Certificates for tests, made on the spot: a CA, and pairs that it signs, as PEM files.
#pragma once

#include <string>

namespace moed::server {

struct CertificatePair {
  std::string certificate;  // path
  std::string private_key;
};

class CertificateAuthority {
 public:
  // Files go into `directory`, prefixed with `name`.
  CertificateAuthority(std::string directory, std::string name);
  ~CertificateAuthority();

  const std::string& certificate() const { return certificate_path_; }
  // For localhost and 127.0.0.1, valid from an hour ago for `valid_seconds` more. Written with
  // rename, as rotation does; a second call with the same name replaces the first.
  CertificatePair Issue(const std::string& common_name, long valid_seconds = 3600);

 private:
  struct Keys;

  const std::string directory_;
  const std::string name_;
  const std::string certificate_path_;
  Keys* const keys_;
  long serial_ = 1;
};

// A whole file, for gRPC's credentials.
std::string ReadWholeFile(const std::string& path);

}  // namespace moed::server
