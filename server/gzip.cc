#include "server/gzip.h"

#include <zlib.h>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace moed::server {
namespace {

constexpr int kGzipWindowBits = 15 + 16;  // 16: gzip's header instead of zlib's
// Text of metrics shrinks by an order of magnitude at any level; this one costs least.
constexpr int kLevel = 1;
constexpr int kMemoryLevel = 8;

// Of "gzip;q=0.5"; 1 without one.
double QualityOf(absl::string_view parameters) {
  for (absl::string_view parameter : absl::StrSplit(parameters, ';')) {
    parameter = absl::StripAsciiWhitespace(parameter);
    double quality = 0;
    if (parameter.size() > 2 && absl::AsciiStrToLower(parameter.substr(0, 2)) == "q=" &&
        absl::SimpleAtod(parameter.substr(2), &quality)) {
      return quality;
    }
  }
  return 1;
}

}  // namespace

std::string Gzip(std::string_view text) {
  z_stream stream = {};
  ABSL_RAW_CHECK(deflateInit2(&stream, kLevel, Z_DEFLATED, kGzipWindowBits, kMemoryLevel,
                              Z_DEFAULT_STRATEGY) == Z_OK,
                 "zlib");
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  ABSL_RAW_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END, "deflateBound bounds it");
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

bool AcceptsGzip(std::string_view accept_encoding) {
  for (const absl::string_view coding :
       absl::StrSplit(absl::string_view(accept_encoding.data(), accept_encoding.size()), ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(coding, absl::MaxSplits(';', 1));
    const std::string name = absl::AsciiStrToLower(absl::StripAsciiWhitespace(parts.first));
    if ((name == "gzip" || name == "*") && QualityOf(parts.second) > 0) return true;
  }
  return false;
}

}  // namespace moed::server
