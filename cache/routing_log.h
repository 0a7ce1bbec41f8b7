// Recorded routing as bytes and back: what simulations of policies and budgets replay. The cache
// encodes while it observes (engine thread); whoever has the file writes what Take returns.
//
// Format, version 1: "moedrout", the version (4 bytes, little-endian), the header as one record,
// then a record a step. A record is its length and its payload, so that a log cut short anywhere
// (a killed process) is good up to its last whole step. Numbers are varints (7 bits a byte, the
// lowest first). Header: layers, experts of each, top_k, bytes of an expert, length of the model's
// name, the name. Step: layers with routing; of each the distance from the layer before, how many
// experts, and of each expert, by rising index, the distance from the one before and
// 2 * tokens + (weight differs from tokens), then such a weight as a 4-byte float.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/routing_trace.h"

namespace moed::cache {

struct RoutingLogHeader {
  std::vector<int> experts_per_layer;  // 0 for a layer without a router
  int top_k = 0;
  int64_t expert_bytes = 0;
  std::string model;
};

class RoutingLogWriter {
 public:
  explicit RoutingLogWriter(const RoutingLogHeader& header);

  void BeginStep();
  // What one layer's router chose; layers of a step in rising order.
  void ObserveLayer(int layer, std::span<const ExpertLoad> experts);
  // Ends the step under way and returns all bytes since the last call, the file's head included.
  std::string Take();

 private:
  void EndStep();

  std::string bytes_;  // whole records
  std::string step_;   // layers of the step under way
  int step_layers_ = 0;
  int last_layer_ = 0;
  std::vector<ExpertLoad> sorted_;  // kept for its memory
};

struct RoutingLog {
  RoutingLogHeader header;
  std::vector<RoutingTrace> steps;
  bool truncated = false;  // the last step was cut short and left out
};

// DATA_LOSS: no routing log, or damaged (naming the step); FAILED_PRECONDITION: another version.
absl::StatusOr<RoutingLog> ParseRoutingLog(absl::string_view bytes);

}  // namespace moed::cache
