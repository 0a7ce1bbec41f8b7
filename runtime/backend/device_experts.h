// Experts whose place the device looks up by itself, so that nothing between a layer's router and
// its experts waits for the host. The device keeps a table of which expert lies in which slot; the
// host changes it between steps and learns from each step's trace what was used from where. The
// protocol, and why edits instead of tables, is cache/device_table.h's; the model translates.
//
// An expert without a slot is computed from host memory, where every expert lies: by the device, or
// by the host's CPU at the same time (ColdPath). If its filling is allowed and its layer has an
// offered slot whose expert, if it still holds one, is not used in the same step, the device
// computes it and writes it there on the way. Owned by the expert store;
// engine thread. Like all ops, Run and FinishStep are issued in order and may be recorded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/expert_format.h"
#include "runtime/backend/next_routers.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

enum class ExpertEditKind : int32_t { kInsert, kEvict, kOffer, kWithdraw, kAllowFill, kForbidFill };

// One change of the table.
struct ExpertEdit {
  ExpertEditKind kind = ExpertEditKind::kInsert;
  int32_t layer = 0;
  int32_t expert = -1;  // -1 for kWithdraw, and for kOffer if the slot holds nothing
  int32_t slot = -1;    // -1 for kAllowFill and kForbidFill
  uint32_t generation = 0;
};

enum class ExpertUseKind : int32_t { kUnused, kHit, kFilled, kCold };

// How one expert was used in a step. `slot` and `generation` are those it was read from or written
// into; of its neurons, the last `cpu_neurons` were the CPU's.
struct ExpertUse {
  ExpertUseKind kind = ExpertUseKind::kUnused;
  int32_t slot = -1;
  uint32_t generation = 0;
  int32_t cpu_neurons = 0;
};

// What the CPU computed of cold experts since the start, in neurons, and of how many of these it
// had fetched the weights ahead, by a guess.
struct ColdNeurons {
  int64_t computed = 0;
  int64_t fetched_ahead = 0;
};

// How fast cold experts came in recent steps, in stored bytes a second while link and CPU had some
// to bring at once; zero: not measured.
struct ColdRates {
  double link = 0;
  double cpu = 0;
};

// Who computes experts that have no slot and fill none.
enum class ColdPath : uint8_t {
  kLink,    // the device, straight from host memory
  kCpu,     // the host's CPU, whose sums the device waits for and adds
  kHybrid,  // both at once, at a share that follows their measured speeds (cold_division.h)
};

struct DeviceExpertsOptions {
  ExpertFormat format;
  std::vector<int> experts_per_layer;  // 0 for a layer without a router
  int top_k = 0;
  int max_tokens = 0;  // of a step
  int num_slots = 0;
  // All experts, layer by layer, blob_bytes() each, in memory of MemoryKind::kHost.
  const std::byte* host_experts = nullptr;
  // num_slots * blob_bytes() of MemoryKind::kDevice.
  std::byte* slots = nullptr;
  ColdPath cold_path = ColdPath::kLink;
  int cold_threads = 0;  // of the CPU's part; 0: DefaultColdThreads
  // For the CPU's threads to guess a layer's experts ahead; null: they do not.
  std::shared_ptr<const NextRouters> next_routers = nullptr;
  // The longest that the device waits for the CPU's part of a layer.
  int cold_timeout_ms = 3000;
};

struct RouterStep;  // backend.h

class DeviceExperts {
 public:
  virtual ~DeviceExperts() = default;

  virtual int max_tokens() const = 0;
  // The rows that a step of `tokens` is padded to, so that few sizes cover all steps. Padding rows
  // belong to no segment of the step; their results mean nothing.
  virtual int64_t PaddedTokens(int64_t tokens) const = 0;

  // Around a step of `tokens`, outside of what is recorded: before its first op is issued, and
  // after FinishStep, whose results it waits for. UNAVAILABLE, then and for ever: the CPU's part of
  // a step did not come in time, and the step's results are worthless.
  virtual absl::Status BeginStep(int64_t tokens) = 0;
  virtual absl::Status EndStep() = 0;

  // Changes the table, in order, after the steps issued so far and before the next.
  virtual absl::Status Apply(std::span<const ExpertEdit> edits) = 0;

  // Where Route puts the choice of `layer`: [tokens, k] i32.
  virtual Tensor ids(int layer, int64_t tokens) const = 0;

  // NormRoute of backend.h for `layer`, with step.ids as above. If a Run follows, it is of the same
  // layer and rows: a device may plan it here.
  virtual void Route(int layer, const RouterStep& step) = 0;

  // residual[t] += sum over ranks r of weights[t, r] * expert ids[t, r] of x[t], in any order.
  // weights [T, k] f32, x [T, H] bf16, residual [T, H] f32; rows of segments only.
  virtual void Run(int layer, const Tensor& weights, const Tensor& x, const Tensor& residual) = 0;

  // Behind the step's last layer: what follows is valid after EndStep, until the next step. What a
  // device copies for it, it copies beside the ops issued next.
  virtual void FinishStep() = 0;
  // [tokens * k]: the experts that the step's tokens chose.
  virtual std::span<const int32_t> StepIds(int layer, int64_t tokens) const = 0;
  // [experts of the layer].
  virtual std::span<const ExpertUse> Uses(int layer) const = 0;

  // All zero where the CPU takes no part. At any time.
  virtual ColdNeurons cold_neurons() const = 0;
  // In steps of about as many tokens as the last. Between steps.
  virtual ColdRates cold_rates() const = 0;
};

}  // namespace moed::backend
