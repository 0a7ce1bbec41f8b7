// Reads the fields of one JSON object with types and ranges checked. The first mistake is kept, the
// reads after it return defaults: a parser reads all it needs and looks at status() once. Null is
// the same as absent. One thread.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace moed::model {

struct IntRange {
  int64_t min = 0;
  int64_t max = 0;
};

// Finite numbers from `min` to `max`, both allowed.
struct NumberRange {
  double min = 0;
  double max = 0;
};

class JsonFields {
 public:
  // Several spellings of one key; the first that is present counts.
  using Keys = std::initializer_list<std::string_view>;

  // `object` and `status` must outlive this. `source` names the file in messages; `path` the object
  // in it ("rope_scaling.", or empty).
  JsonFields(const nlohmann::json& object, std::string source, absl::Status* status,
             std::string path = "");

  bool Has(std::string_view key) const { return Find({key}) != nullptr; }

  // INVALID_ARGUMENT if absent without a default, not an integer, or outside the range.
  int64_t Int(Keys keys, IntRange range, std::optional<int64_t> absent = std::nullopt);
  double Number(Keys keys, NumberRange range, std::optional<double> absent = std::nullopt);
  bool Bool(std::string_view key, bool absent);
  std::string String(Keys keys, std::string_view absent);
  // A list of integers, or one integer; empty if absent.
  std::vector<int64_t> Ints(std::string_view key, IntRange range);
  // A list of strings; empty if absent.
  std::vector<std::string> Strings(std::string_view key);
  // The object under `key`; one without fields if absent.
  JsonFields Object(std::string_view key);
  bool SameAs(const JsonFields& other) const { return *object_ == *other.object_; }

  // Records INVALID_ARGUMENT "<source>: <message>" unless there is an error already.
  void Fail(const std::string& message);
  const absl::Status& status() const { return *status_; }

 private:
  const nlohmann::json* Find(Keys keys) const;
  // Find, and the failure "missing" if nothing is there.
  const nlohmann::json* Require(Keys keys);
  void FailType(Keys keys, const std::string& expected);
  std::optional<int64_t> ToInt(const nlohmann::json& value, Keys keys, IntRange range);

  const nlohmann::json* object_;
  std::string source_;
  std::string path_;
  absl::Status* status_;
};

}  // namespace moed::model
