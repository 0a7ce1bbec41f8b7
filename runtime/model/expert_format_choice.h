// Which format the experts of a checkpoint are served in: what the user wants, what the files hold,
// what the device's kernels take and where all of them would lie, weighed before memory is planned.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/recoded_experts.h"

namespace moed::model {

enum class ExpertFormatPreference : uint8_t { kAuto, kBF16, kBF12 };

struct ExpertFormatRequest {
  ExpertFormatPreference preference = ExpertFormatPreference::kAuto;
  bool kernels_take_bf12 = false;
  // What host memory may hold, for a device that keeps every expert there; 0: experts are paged
  // from files.
  int64_t host_store_bytes = 0;
  // Room for escapes is then exact. Otherwise a sample must do, and an expert that is wilder than
  // any in it cannot be read: OUT_OF_RANGE.
  bool measure_every_expert = false;
};

// Experts in the format in which they are served.
struct ServedExperts {
  const ExpertSource* source = nullptr;
  std::unique_ptr<const ExpertSource> recoded;  // `source`, unless that is the checkpoint's own
  // `source`, if reading encodes, which takes too long for a request: every expert must be read at
  // start.
  const EncodedExperts* encoding = nullptr;
  std::string note;  // why this format and no smaller one, for the log; may be empty
};

// Automatic: bf12 if the files hold it, or if all experts go to host memory, are encoded on their
// way there and bf12 pays (bf12_survey.h). Files of bf16 experts that are paged stay bf16. What the
// kernels cannot take is decoded.
// `checkpoint` must outlive the result. UNIMPLEMENTED: bf12 is wanted, but the device has no
// kernels for it, or bf12 no room for this hidden size or one of the experts; the errors of reading
// experts to measure them.
absl::StatusOr<ServedExperts> ChooseExperts(const Checkpoint& checkpoint,
                                            const ExpertFormatRequest& request);

// The checkpoint's own experts as they are.
ServedExperts StoredExperts(const Checkpoint& checkpoint, std::string note);

}  // namespace moed::model
