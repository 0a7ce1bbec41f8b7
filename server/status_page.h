// The status page: one HTML file, status_page.html, embedded by the build.
#pragma once

#include <string_view>

namespace moed::server {

extern const std::string_view kStatusPage;

}  // namespace moed::server
