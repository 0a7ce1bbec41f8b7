#include "runtime/text/read_file.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moed::text {
namespace {

// The largest tokenizer.json known is 35 MB.
constexpr uintmax_t kMaxFileBytes = uintmax_t{256} << 20;

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  const uintmax_t size_bytes = std::filesystem::file_size(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  if (size_bytes > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than 256 MiB"));
  }
  std::ifstream file(path, std::ios::binary);
  std::string contents{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.good() && !file.eof()) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be read; check its permissions"));
  }
  return contents;
}

}  // namespace moed::text
