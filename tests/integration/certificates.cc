#include "tests/integration/certificates.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::server {
namespace {

EVP_PKEY* NewKey() { return EVP_EC_gen("P-256"); }

X509* NewCertificate(long serial, const std::string& common_name, EVP_PKEY* key,
                     long valid_seconds) {
  X509* certificate = X509_new();
  X509_set_version(certificate, X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), valid_seconds);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1,
                             0);
  X509_set_pubkey(certificate, key);
  return certificate;
}

void Extend(X509* certificate, X509* issuer, int kind, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

// `write` gets the open file; the path then appears at once and whole.
template <typename Write>
void Replace(const std::string& path, Write write) {
  const std::string temporary = path + ".new";
  FILE* file = std::fopen(temporary.c_str(), "w");
  ASSERT_NE(file, nullptr) << temporary;
  write(file);
  std::fclose(file);
  ASSERT_EQ(std::rename(temporary.c_str(), path.c_str()), 0);
}

}  // namespace

struct CertificateAuthority::Keys {
  EVP_PKEY* key;
  X509* certificate;
};

CertificateAuthority::CertificateAuthority(std::string directory, std::string name)
    : directory_(std::move(directory)),
      name_(std::move(name)),
      certificate_path_(absl::StrCat(directory_, "/", name_, "-ca.crt")),
      keys_(new Keys) {
  keys_->key = NewKey();
  keys_->certificate = NewCertificate(serial_++, name_, keys_->key, 86400);
  X509_set_issuer_name(keys_->certificate, X509_get_subject_name(keys_->certificate));
  Extend(keys_->certificate, keys_->certificate, NID_basic_constraints, "critical,CA:TRUE");
  X509_sign(keys_->certificate, keys_->key, EVP_sha256());
  Replace(certificate_path_, [&](FILE* file) { PEM_write_X509(file, keys_->certificate); });
}

CertificateAuthority::~CertificateAuthority() {
  X509_free(keys_->certificate);
  EVP_PKEY_free(keys_->key);
  delete keys_;
}

CertificatePair CertificateAuthority::Issue(const std::string& common_name, long valid_seconds) {
  const std::string stem = absl::StrCat(directory_, "/", name_, "-", common_name);
  const CertificatePair pair = {stem + ".crt", stem + ".key"};
  EVP_PKEY* key = NewKey();
  X509* certificate = NewCertificate(serial_++, common_name, key, valid_seconds);
  X509_set_issuer_name(certificate, X509_get_subject_name(keys_->certificate));
  Extend(certificate, keys_->certificate, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
  X509_sign(certificate, keys_->key, EVP_sha256());
  Replace(pair.private_key, [&](FILE* file) {
    PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
  });
  Replace(pair.certificate, [&](FILE* file) { PEM_write_X509(file, certificate); });
  X509_free(certificate);
  EVP_PKEY_free(key);
  return pair;
}

std::string ReadWholeFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

}  // namespace moed::server
