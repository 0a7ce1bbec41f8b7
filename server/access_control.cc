#include "server/access_control.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/authorizer.h"
#include "server/listen_address.h"

namespace moed::server {
namespace {

// Reads `secrets` again, if there are any; `what` they are and the file they come from for the log.
template <typename Secrets>
void ReloadSecrets(Secrets* secrets, const char* what, const std::string& file) {
  if (secrets == nullptr) return;
  const absl::Status status = secrets->Reload();
  if (status.ok()) {
    spdlog::info("{} {} read from {}", secrets->size(), what, file);
  } else {
    spdlog::error("the old {} stay: {}", what, std::string(status.message()));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Load(const Options& options) {
  std::unique_ptr<AccessControl> access(new AccessControl(options));
  for (const auto load :
       {&AccessControl::LoadApi, &AccessControl::LoadAdmin, &AccessControl::LoadMetrics}) {
    absl::Status status = (access.get()->*load)();
    if (!status.ok()) return status;
  }
  return access;
}

absl::Status AccessControl::LoadApi() {
  absl::Status status = CheckTlsFiles(options_.tls, absl::Now());
  if (!status.ok()) return status;
  const absl::Duration interval = absl::Seconds(options_.tls_reload_seconds);
  if (options_.api_key_file.empty()) {
    api_ = MakeServerCredentials(options_.tls, interval);
    return absl::OkStatus();
  }
  if (!options_.tls.enabled() && !IsLoopback(options_.host)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--api-key-file on ", options_.host,
        " needs TLS, for a key sent in plain text is no secret: give --tls-cert and --tls-key, or "
        "listen on 127.0.0.1 behind a proxy that ends TLS"));
  }
  auto keys = ApiKeys::Load(options_.api_key_file);
  if (!keys.ok()) return keys.status();
  api_keys_ = *std::move(keys);
  api_ = MakeKeyedCredentials(options_.tls, interval, api_keys_.get());
  return absl::OkStatus();
}

absl::Status AccessControl::LoadAdmin() {
  const bool loopback = IsLoopback(options_.admin_host);
  if (!options_.admin_key_file.empty()) {
    auto keys = ApiKeys::Load(options_.admin_key_file);
    if (!keys.ok()) return keys.status();
    admin_keys_ = *std::move(keys);
    if (!admin_keys_->AnyMay(Access::kAdmin)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "no key of ", options_.admin_key_file, " may administer; write `KEY admin` on its line"));
    }
  }
  if (options_.admin_port != kNoPort && !loopback &&
      (admin_keys_ == nullptr || !options_.tls.enabled())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the admin service on ", options_.admin_host,
        " needs a key and TLS: give --admin-key-file, --tls-cert and --tls-key, or leave "
        "--admin-host at 127.0.0.1"));
  }
  const TlsFiles tls = loopback ? TlsFiles() : options_.tls;
  const absl::Duration interval = absl::Seconds(options_.tls_reload_seconds);
  admin_ = admin_keys_ != nullptr ? MakeKeyedCredentials(tls, interval, admin_keys_.get())
                                  : MakeServerCredentials(tls, interval);
  return absl::OkStatus();
}

absl::Status AccessControl::LoadMetrics() {
  absl::Status status = CheckTlsFiles(options_.metrics_tls, absl::Now());
  if (!status.ok() || options_.metrics_auth_file.empty()) return status;
  if (!options_.metrics_tls.enabled() && !IsLoopback(options_.host)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--metrics-auth-file on ", options_.host,
        " needs TLS, for a password sent in plain text is no secret: give --metrics-tls-cert and "
        "--metrics-tls-key"));
  }
  auto users = BasicAuth::Load(options_.metrics_auth_file);
  if (!users.ok()) return users.status();
  metrics_users_ = *std::move(users);
  return absl::OkStatus();
}

void AccessControl::Reload() {
  ReloadSecrets(api_keys_.get(), "keys", options_.api_key_file);
  ReloadSecrets(admin_keys_.get(), "admin keys", options_.admin_key_file);
  ReloadSecrets(metrics_users_.get(), "metrics users", options_.metrics_auth_file);
}

}  // namespace moed::server
