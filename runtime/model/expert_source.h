// Where the bytes of experts come from when they are not resident: checkpoint files, or the dummy
// generator. Reading is thread-safe; the I/O threads of the expert loader call it.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "cache/expert_key.h"
#include "runtime/backend/expert_format.h"

namespace moed::model {

class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  virtual const backend::ExpertFormat& format() const = 0;
  // Writes the expert's blob, format().blob_bytes() long, into host memory.
  // DATA_LOSS if the file is short or unreadable, naming file and tensor.
  virtual absl::Status Read(cache::ExpertKey key, std::span<std::byte> blob) const = 0;
};

}  // namespace moed::model
