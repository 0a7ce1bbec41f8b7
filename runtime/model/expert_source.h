// Where the bytes of experts come from when they are not resident: checkpoint files, or the dummy
// generator. Reading is thread-safe; the I/O threads of the expert loader call it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "cache/expert_key.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/reread.h"

namespace moed::model {

// The `index`-th of `count` shares of an expert: several threads may read one expert together.
struct ReadShare {
  int index = 0;
  int count = 1;
  // Where the blob lies in a device's memory: ops that use it still (Backend::Issued).
  uint64_t after = 0;
  Reread reread = Reread::kLikely;
};

class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  virtual const backend::ExpertFormat& format() const = 0;
  // Writes a share of the expert's blob into `blob`, format().blob_bytes() long, in host memory:
  // all shares of a count together write all of it, each byte once. A share may be empty.
  // DATA_LOSS if the file is short or unreadable, naming file and tensor.
  virtual absl::Status Read(cache::ExpertKey key, ReadShare share,
                            std::span<std::byte> blob) const = 0;
};

}  // namespace moed::model
