// An address to listen on, as gRPC and the metrics listener read it.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"

namespace moed::server {

// "127.0.0.1:8500" or "[::1]:8500".
inline std::string ListenAddress(const std::string& host, int port) {
  const bool needs_brackets = host.find(':') != std::string::npos && host.front() != '[';
  return needs_brackets ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

// Whether only this machine reaches `host`.
inline bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

}  // namespace moed::server
