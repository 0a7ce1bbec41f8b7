#include "server/metrics_listener.h"

#include <dlfcn.h>
#include <netdb.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <prometheus/text_serializer.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string_view>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/gzip.h"
#include "server/listen_address.h"
#include "server/status_json.h"
#include "server/status_page.h"

extern "C" void MoedCryptoNames();
extern "C" void MoedSslNames();

namespace moed::server {
namespace {

// Enough for a scraper's headers, little enough for a stranger's.
constexpr char kMaxHeaderBytes[] = "8192";
// The page is whole in itself: nothing from elsewhere may run or be fetched in it.
constexpr char kPageHeaders[] =
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'\r\n";

// Some scrapers, and all browsers, ask for gzip: per-expert series are megabytes.
constexpr size_t kMinGzipBytes = 1024;

int Refuse(mg_connection* connection, int code, const char* reason, const char* headers) {
  mg_printf(connection,
            "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "
            "%zu\r\nCache-Control: no-store\r\n%s\r\n%s\n",
            code, reason, std::string_view(reason).size() + 1, headers, reason);
  return code;
}

std::string_view Header(const mg_connection* connection, const char* name) {
  const char* value = mg_get_header(connection, name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

int Send(mg_connection* connection, const char* type, std::string_view body,
         const char* headers = "") {
  std::string packed;
  const bool gzip =
      body.size() >= kMinGzipBytes && AcceptsGzip(Header(connection, "Accept-Encoding"));
  if (gzip) {
    packed = Gzip(body);
    body = packed;
  }
  mg_printf(connection,
            "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: "
            "no-store\r\nVary: Accept-Encoding\r\n%s%s\r\n",
            type, body.size(), gzip ? "Content-Encoding: gzip\r\n" : "", headers);
  const std::string_view method = mg_get_request_info(connection)->request_method;
  if (method != "HEAD") mg_write(connection, body.data(), body.size());
  return 200;
}

int SendFamilies(mg_connection* connection, const prometheus::Collectable& collector) {
  return Send(connection, "text/plain; version=0.0.4; charset=utf-8",
              prometheus::TextSerializer().Serialize(collector.Collect()));
}

const MetricsListener& Self(void* self) { return *static_cast<const MetricsListener*>(self); }

// Connects and leaves, so that a thread that waits in accept looks around.
void Knock(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found) != 0) return;
  const int socket_fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket_fd >= 0) {
    connect(socket_fd, found->ai_addr, found->ai_addrlen);
    close(socket_fd);
  }
  freeaddrinfo(found);
}

// civetweb finds OpenSSL by name (server/openssl_names). It must be the one that this program is
// linked with, for they exchange objects.
absl::Status CheckTlsLibraries() {
  MoedCryptoNames();
  MoedSslNames();
  for (const auto& [name, symbol, linked] :
       {std::tuple{"libcrypto.so", "X509_new", reinterpret_cast<void*>(&X509_new)},
        std::tuple{"libssl.so", "SSL_new", reinterpret_cast<void*>(&SSL_new)}}) {
    void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr || dlsym(library, symbol) != linked) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--metrics-tls-cert: ", name, " is not the OpenSSL that moed was built with; is ",
          "LD_LIBRARY_PATH or LD_PRELOAD set?"));
    }
    dlclose(library);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const MetricsListenerOptions& options, const ModelSlot* slot) {
  if (options.tls.enabled()) {
    absl::Status status = CheckTlsLibraries();
    if (!status.ok()) return status;
  }
  std::unique_ptr<MetricsListener> listener(new MetricsListener(options, slot));
  if (options.tls.enabled()) {
    auto certificate = RotatingCertificate::Load(options.tls, options.tls_reload_interval);
    if (!certificate.ok()) return certificate.status();
    listener->certificate_ = *std::move(certificate);
  }
  absl::Status status = listener->Listen();
  if (!status.ok()) return status;
  return listener;
}

MetricsListener::MetricsListener(const MetricsListenerOptions& options, const ModelSlot* slot)
    : options_(options), slot_(*slot), start_(absl::Now()), serving_(slot), experts_(slot) {
  mg_init_library(options.tls.enabled() ? MG_FEATURES_SSL : 0);
}

absl::Status MetricsListener::Listen() {
  const std::string address = ListenAddress(options_.host, options_.port);
  const std::string ports = certificate_ != nullptr ? address + "s" : address;
  const char* settings[] = {"listening_ports",
                            ports.c_str(),
                            "num_threads",
                            "4",
                            "max_request_size",
                            kMaxHeaderBytes,
                            "request_timeout_ms",
                            "10000",
                            "enable_keep_alive",
                            "no",
                            nullptr};
  mg_callbacks callbacks = {};
  callbacks.begin_request = &Admit;
  callbacks.init_ssl = &InitializeTls;
  callbacks.log_message = [](const mg_connection*, const char* message) {
    spdlog::debug("metrics listener: {}", message);
    return 1;
  };
  context_ = mg_start(&callbacks, this, settings);
  mg_server_port bound = {};
  if (context_ == nullptr || mg_get_server_ports(context_, 1, &bound) < 1) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address,
                     "; is the port in use? choose another with --metrics-port"));
  }
  port_ = bound.port;
  mg_set_request_handler(context_, "/$", &ServePage, this);
  mg_set_request_handler(context_, "/status.json$", &ServeStatus, this);
  mg_set_request_handler(context_, "/metrics$", &ServeMetrics, this);
  mg_set_request_handler(context_, "/metrics/experts$", &ServeExpertMetrics, this);
  return absl::OkStatus();
}

int MetricsListener::InitializeTls(void* context, void* self) {
  static_cast<MetricsListener*>(self)->certificate_->Install(static_cast<SSL_CTX*>(context));
  return 1;
}

int MetricsListener::Admit(mg_connection* connection) {
  const mg_request_info* request = mg_get_request_info(connection);
  const BasicAuth* users = Self(request->user_data).options_.users;
  const std::string_view authorization = Header(connection, "Authorization");
  if (users != nullptr && !users->Allows({authorization.data(), authorization.size()})) {
    return Refuse(connection, 401, "a user and a password are needed",
                  "WWW-Authenticate: Basic realm=\"moed\", charset=\"UTF-8\"\r\n");
  }
  const std::string_view method = request->request_method;
  if (method == "GET" || method == "HEAD") return 0;  // on to the handler
  return Refuse(connection, 405, "only GET and HEAD", "Allow: GET, HEAD\r\n");
}

MetricsListener::~MetricsListener() {
  if (context_ != nullptr) {
    std::atomic<bool> stopped = false;
    std::thread stopper([&] {
      mg_stop(context_);
      stopped = true;
    });
    while (!stopped) {
      Knock(options_.host, port_);
      absl::SleepFor(absl::Milliseconds(5));
    }
    stopper.join();
  }
  mg_exit_library();
}

int MetricsListener::ServePage(mg_connection* connection, void* /*self*/) {
  return Send(connection, "text/html; charset=utf-8", kStatusPage, kPageHeaders);
}

int MetricsListener::ServeStatus(mg_connection* connection, void* self) {
  const Serving* serving = Self(self).slot_.get();
  const double uptime = absl::ToDoubleSeconds(absl::Now() - Self(self).start_);
  return Send(connection, "application/json",
              StatusJson(serving == nullptr ? nullptr : serving->model.get(), uptime));
}

int MetricsListener::ServeMetrics(mg_connection* connection, void* self) {
  return SendFamilies(connection, Self(self).serving_);
}

int MetricsListener::ServeExpertMetrics(mg_connection* connection, void* self) {
  return SendFamilies(connection, Self(self).experts_);
}

}  // namespace moed::server
