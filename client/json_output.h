// A response as JSON with the field names of its .proto.
#pragma once

#include <google/protobuf/message.h>

#include <ostream>

#include "absl/status/status.h"

namespace moed::client {

// INTERNAL if the message cannot be written as JSON.
absl::Status PrintJson(const google::protobuf::Message& message, std::ostream& out);

}  // namespace moed::client
