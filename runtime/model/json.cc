#include "runtime/model/json.h"

#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moed::model {
namespace {

// Walks the text once before a tree is built of it, so that a hostile one costs no memory.
class StrictnessCheck : public nlohmann::json_sax<nlohmann::json> {
 public:
  const std::string& error() const { return error_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

  bool start_object(size_t) override { return Enter(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    error_ = absl::StrCat("key \"", name.substr(0, 200), "\" appears twice in one object");
    return false;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    error_ = e.what();
    return false;
  }

 private:
  bool Enter() {
    keys_.emplace_back();
    if (keys_.size() <= kMaxJsonDepth) return true;
    error_ = absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels");
    return false;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<absl::flat_hash_set<std::string>> keys_;  // one set for each open object or array
  std::string error_;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& source) {
  // The parser takes a zero byte for the end of the text.
  if (text.find('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": has a zero byte; no JSON has"));
  }
  StrictnessCheck check;
  if (!nlohmann::json::sax_parse(text, &check)) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", check.error()));
  }
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& source) {
  absl::StatusOr<nlohmann::json> json = ParseJson(text, source);
  if (json.ok() && !json->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": must hold a JSON object"));
  }
  return json;
}

}  // namespace moed::model
