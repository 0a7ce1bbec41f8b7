#include "runtime/model/json_fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::model {

using nlohmann::json;

namespace {

std::string JoinKeys(JsonFields::Keys keys) {
  std::string joined;
  for (std::string_view key : keys) {
    if (!joined.empty()) joined += "\" or \"";
    joined += key;
  }
  return joined;
}

}  // namespace

JsonFields::JsonFields(const json& object, std::string source, absl::Status* status,
                       std::string path)
    : object_(&object), source_(std::move(source)), path_(std::move(path)), status_(status) {}

const json* JsonFields::Find(Keys keys) const {
  for (std::string_view key : keys) {
    const auto found = object_->find(key);
    if (found != object_->end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

const json* JsonFields::Require(Keys keys) {
  const json* value = Find(keys);
  if (value == nullptr) {
    Fail(absl::StrCat("key \"", path_, JoinKeys(keys), "\" is missing"));
  }
  return value;
}

void JsonFields::FailType(Keys keys, const std::string& expected) {
  Fail(
      absl::StrCat("\"", path_, std::string(*keys.begin()), "\" must be ", expected, ", not ",
                   Find(keys)->dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 80)));
}

std::optional<int64_t> JsonFields::ToInt(const json& value, Keys keys, IntRange range) {
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() &&
                      value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()});
  if (fits) {
    const int64_t number = value.get<int64_t>();
    if (number >= range.min && number <= range.max) return number;
  }
  FailType(keys, absl::StrCat("an integer from ", range.min, " to ", range.max));
  return std::nullopt;
}

int64_t JsonFields::Int(Keys keys, IntRange range, std::optional<int64_t> absent) {
  const json* value = absent.has_value() ? Find(keys) : Require(keys);
  if (value == nullptr) return absent.value_or(range.min);
  return ToInt(*value, keys, range).value_or(range.min);
}

double JsonFields::Number(Keys keys, NumberRange range, std::optional<double> absent) {
  const json* value = absent.has_value() ? Find(keys) : Require(keys);
  if (value == nullptr) return absent.value_or(range.min);
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= range.min && number <= range.max) return number;
  }
  FailType(keys, absl::StrCat("a number from ", range.min, " to ", range.max));
  return range.min;
}

bool JsonFields::Bool(std::string_view key, bool absent) {
  const json* value = Find({key});
  if (value == nullptr) return absent;
  if (value->is_boolean()) return value->get<bool>();
  FailType({key}, "true or false");
  return absent;
}

std::string JsonFields::String(Keys keys, std::string_view absent) {
  const json* value = Find(keys);
  if (value == nullptr) return std::string(absent);
  if (value->is_string()) return value->get<std::string>();
  FailType(keys, "a string");
  return std::string(absent);
}

std::vector<int64_t> JsonFields::Ints(std::string_view key, IntRange range) {
  const json* value = Find({key});
  if (value == nullptr) return {};
  const json list = value->is_array() ? *value : json::array({*value});
  std::vector<int64_t> numbers;
  for (const json& element : list) {
    const std::optional<int64_t> number = ToInt(element, {key}, range);
    if (!number.has_value()) return {};
    numbers.push_back(*number);
  }
  return numbers;
}

std::vector<std::string> JsonFields::Strings(std::string_view key) {
  const json* value = Find({key});
  if (value == nullptr) return {};
  std::vector<std::string> strings;
  bool valid = value->is_array();
  for (const json& element : *value) {
    valid = valid && element.is_string();
    if (valid) strings.push_back(element.get<std::string>());
  }
  if (!valid) FailType({key}, "a list of strings");
  return valid ? strings : std::vector<std::string>();
}

JsonFields JsonFields::Object(std::string_view key) {
  static const json& kEmpty = *new json(json::object());
  const json* value = Find({key});
  if (value != nullptr && !value->is_object()) FailType({key}, "an object");
  const bool usable = value != nullptr && value->is_object();
  return JsonFields(usable ? *value : kEmpty, source_, status_,
                    absl::StrCat(path_, std::string(key), "."));
}

void JsonFields::Fail(const std::string& message) {
  if (status_->ok()) *status_ = absl::InvalidArgumentError(absl::StrCat(source_, ": ", message));
}

}  // namespace moed::model
