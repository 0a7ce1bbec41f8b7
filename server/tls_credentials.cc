#include "server/tls_credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/strings/str_cat.h"
#include "runtime/text/read_file.h"

namespace moed::server {
namespace {

template <auto kFree>
struct FreeBy {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Certificate = std::unique_ptr<X509, FreeBy<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, FreeBy<BIO_free>>;

absl::Status Problem(const std::string& file, absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat(file, " ", what));
}

// The first PEM object of a file by `read`, one of OpenSSL's PEM_read_bio_ functions.
template <typename Object, typename Read>
absl::StatusOr<Object> ReadPem(const std::string& file, absl::string_view kind, Read read) {
  const absl::StatusOr<std::string> text = text::ReadFile(file);
  if (!text.ok()) {
    return Problem(file, absl::StrCat("cannot be read: ", text.status().message()));
  }
  const Bio bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  Object object(read(bio.get(), nullptr, nullptr, nullptr));
  if (object == nullptr) return Problem(file, absl::StrCat("holds no ", kind, " in PEM"));
  return object;
}

absl::Status CheckValidity(const std::string& file, const X509* certificate, absl::Time now) {
  time_t seconds = absl::ToTimeT(now);
  if (X509_cmp_time(X509_get0_notAfter(certificate), &seconds) < 0) {
    return Problem(file, "has expired; renew it");
  }
  if (X509_cmp_time(X509_get0_notBefore(certificate), &seconds) > 0) {
    return Problem(file, "is not valid yet; is this machine's clock right?");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files, absl::Time now) {
  if (!files.enabled()) return absl::OkStatus();
  const auto certificate =
      ReadPem<Certificate>(files.certificate, "certificate", PEM_read_bio_X509);
  if (!certificate.ok()) return certificate.status();
  absl::Status status = CheckValidity(files.certificate, certificate->get(), now);
  if (!status.ok()) return status;
  const auto key = ReadPem<PrivateKey>(files.private_key, "private key", PEM_read_bio_PrivateKey);
  if (!key.ok()) return key.status();
  if (X509_check_private_key(certificate->get(), key->get()) != 1) {
    return Problem(files.private_key,
                   absl::StrCat("is not the key of ", files.certificate, "; name a pair"));
  }
  if (files.client_ca.empty()) return absl::OkStatus();
  return ReadPem<Certificate>(files.client_ca, "certificate", PEM_read_bio_X509).status();
}

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files,
                                                               absl::Duration reload_interval) {
  namespace tls = grpc::experimental;
  if (!files.enabled()) return grpc::InsecureServerCredentials();
  auto provider = std::make_shared<tls::FileWatcherCertificateProvider>(
      files.private_key, files.certificate, files.client_ca,
      static_cast<unsigned int>(absl::ToInt64Seconds(reload_interval)));
  tls::TlsServerCredentialsOptions options(std::move(provider));
  options.watch_identity_key_cert_pairs();
  if (!files.client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return tls::TlsServerCredentials(options);
}

}  // namespace moed::server
