#include "client/json_output.h"

#include <google/protobuf/util/json_util.h>

#include <string>

namespace moed::client {

absl::Status PrintJson(const google::protobuf::Message& message, std::ostream& out) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) return absl::InternalError(status.message().as_string());
  out << json;
  return absl::OkStatus();
}

}  // namespace moed::client
