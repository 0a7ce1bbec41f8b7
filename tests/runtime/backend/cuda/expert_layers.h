// Two layers of a few experts on one backend, for tests of what a device drives itself: their
// steps, and what their slots hold.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/device_experts.h"

namespace moed::backend {

// Hidden and intermediate size.
using ExpertShape = std::pair<int, int>;

// With room for the escapes of the layers' experts.
ExpertFormat FormatOf(ExpertFormatKind kind, const ExpertShape& shape);

class ExpertLayers {
 public:
  static constexpr int kExperts = 9;  // of a layer
  static constexpr int kTopK = 3;
  static constexpr int kSlots = 5;
  static constexpr int kMaxTokens = 64;
  static constexpr int kLayers = 2;

  ExpertLayers(Backend& backend, const ExpertFormat& format, ColdPath cold_path,
               int timeout_ms = 3000);

  DeviceExperts& experts() { return *experts_; }

  // The residual after a step of layer `layer`, from zeros.
  std::vector<float> RunStep(int layer, const std::vector<int32_t>& ids);
  // The same outside of a step.
  std::vector<float> Run(int layer, const std::vector<int32_t>& ids);

  struct Routed {
    std::vector<int32_t> ids;
    std::vector<float> weights;
    std::vector<float> sums;  // added to the residual
  };
  // A step of `tokens` in layer `layer`, whose experts a random router chooses.
  Routed RunRoutedStep(int layer, const RouterSpec& spec, int tokens, uint32_t seed);
  // The same outside of a step.
  Routed RouteAndRun(int layer, const RouterSpec& spec, int tokens, uint32_t seed);

  // Whether `slot` holds the expert; the padding of rows does not count.
  bool Holds(int slot, int layer, int expert);

 private:
  Buffer Allocate(size_t bytes, MemoryKind kind);
  template <typename T>
  void Write(const std::vector<T>& values, std::byte* memory);
  template <typename T>
  Buffer Put(const std::vector<T>& values);
  std::vector<float> Get(const Buffer& memory, size_t count);
  // All values of a blob, [3][I][H].
  std::vector<BFloat16> Values(const std::byte* blob) const;
  // Normal values, a few of them far outside of any row's window of exponents.
  void FillExperts();

  Backend& backend_;
  ExpertFormat format_;
  ExpertFormat bf16_;
  size_t blob_bytes_;
  Buffer host_;
  Buffer slots_;
  std::unique_ptr<DeviceExperts> experts_;
};

}  // namespace moed::backend
