// gzip (RFC 1952) of a text that is at hand whole. A pure function.
#pragma once

#include <string>
#include <string_view>

namespace moed::server {

std::string Gzip(std::string_view text);

// Whether a client that sends `accept_encoding` (RFC 9110; empty: none) takes gzip.
bool AcceptsGzip(std::string_view accept_encoding);

}  // namespace moed::server
