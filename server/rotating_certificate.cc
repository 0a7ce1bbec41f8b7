#include "server/rotating_certificate.h"

#include <openssl/err.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace moed::server {

absl::StatusOr<std::unique_ptr<RotatingCertificate>> RotatingCertificate::Load(
    TlsFiles files, absl::Duration interval) {
  std::unique_ptr<RotatingCertificate> certificate(
      new RotatingCertificate(std::move(files), interval));
  absl::StatusOr<Pair> pair = Read(certificate->files_);
  if (!pair.ok()) return pair.status();
  absl::MutexLock lock(&certificate->mutex_);
  certificate->pair_ = *std::move(pair);
  return certificate;
}

void RotatingCertificate::Install(SSL_CTX* context) {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_cert_cb(context, &Present, this);
}

RotatingCertificate::Version RotatingCertificate::VersionOf(const std::string& file) {
  struct stat status = {};
  if (stat(file.c_str(), &status) != 0) return {};
  return {status.st_ino, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

absl::StatusOr<RotatingCertificate::Pair> RotatingCertificate::Read(const TlsFiles& files) {
  const absl::Status status = CheckTlsFiles(files, absl::Now());
  if (!status.ok()) return status;
  Pair pair(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  if (SSL_CTX_use_certificate_chain_file(pair.get(), files.certificate.c_str()) == 1 &&
      SSL_CTX_use_PrivateKey_file(pair.get(), files.private_key.c_str(), SSL_FILETYPE_PEM) == 1) {
    return pair;
  }
  ERR_clear_error();
  return absl::FailedPreconditionError(
      absl::StrCat(files.certificate, " and ", files.private_key, " do not make a pair"));
}

int RotatingCertificate::Present(SSL* handshake, void* self) {
  const Pair pair = static_cast<RotatingCertificate*>(self)->Current();
  STACK_OF(X509)* chain = nullptr;
  SSL_CTX_get0_chain_certs(pair.get(), &chain);
  return SSL_use_cert_and_key(handshake, SSL_CTX_get0_certificate(pair.get()),
                              SSL_CTX_get0_privatekey(pair.get()), chain, /*override=*/1);
}

RotatingCertificate::Pair RotatingCertificate::Current() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (now - last_look_ < interval_) return pair_;
  last_look_ = now;
  const Version certificate = VersionOf(files_.certificate);
  const Version key = VersionOf(files_.private_key);
  if (certificate == certificate_version_ && key == key_version_) return pair_;
  absl::StatusOr<Pair> pair = Read(files_);
  if (!pair.ok()) {
    spdlog::warn("the old certificate stays: {}", std::string(pair.status().message()));
    return pair_;
  }
  pair_ = *std::move(pair);
  certificate_version_ = certificate;
  key_version_ = key;
  return pair_;
}

}  // namespace moed::server
