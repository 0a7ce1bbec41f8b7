// Where experts without a slot are computed, from what the user asked for and what there is. Pure;
// any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/backend/device_experts.h"

namespace moed::model {

enum class ColdPathPreference : uint8_t { kAuto, kLink, kCpu, kHybrid, kPage };

// What decides, beside the preference.
struct ColdPathCircumstances {
  bool has_device = false;        // with memory of its own
  int64_t expert_bytes = 0;       // of all experts
  int64_t host_memory_bytes = 0;  // that they may take
  int cpus = 0;                   // that the process may use
};

// With fewer, the CPU's part is not worth the thread that the device's answers take.
inline constexpr int kLeastHybridCpus = 4;

// Nullopt: the host pages experts in before they are computed, as on the CPU backend. Auto, where
// every expert fits into host memory, is hybrid, or link with fewer than kLeastHybridCpus.
// INVALID_ARGUMENT: no device, no path; RESOURCE_EXHAUSTED with the numbers: one that needs every
// expert in host memory, where they do not fit.
absl::StatusOr<std::optional<backend::ColdPath>> ChooseColdPath(
    ColdPathPreference preference, const ColdPathCircumstances& circumstances);

// "link", "cpu", "hybrid" or "page".
std::string_view ColdPathName(std::optional<backend::ColdPath> path);

}  // namespace moed::model
