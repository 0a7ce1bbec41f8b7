#include "cache/routing_log.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::cache {
namespace {

constexpr absl::string_view kMagic = "moedrout";
constexpr uint32_t kVersion = 1;
// Of damaged lengths, before anything is allocated for them.
constexpr uint64_t kMaxLayers = 1 << 16;
constexpr uint64_t kMaxExperts = 1 << 20;

void AppendVarint(std::string& bytes, uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
}

void AppendFixed(std::string& bytes, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(value >> shift));
}

void AppendRecord(std::string& bytes, absl::string_view payload) {
  AppendVarint(bytes, payload.size());
  bytes.append(payload.data(), payload.size());
}

// Takes numbers off the front of some bytes. After a number that is not there or exceeds its limit
// everything reads as 0 and ok() is false.
class Reader {
 public:
  explicit Reader(absl::string_view bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  bool empty() const { return bytes_.empty(); }

  uint64_t Varint(uint64_t most = std::numeric_limits<uint64_t>::max()) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(bytes_.front());
      bytes_.remove_prefix(1);
      value |= uint64_t{byte & 0x7fU} << shift;
      if (byte < 0x80) return value <= most ? value : Fail();
    }
    return Fail();
  }
  uint32_t Fixed() {
    uint32_t value = 0;
    const absl::string_view bytes = Bytes(4);
    for (size_t i = 0; i < bytes.size(); ++i) {
      value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    }
    return value;
  }
  absl::string_view Bytes(uint64_t count) {
    if (count > bytes_.size()) Fail();
    const absl::string_view taken = ok_ ? bytes_.substr(0, count) : absl::string_view();
    bytes_.remove_prefix(taken.size());
    return taken;
  }

 private:
  uint64_t Fail() {
    ok_ = false;
    bytes_ = {};
    return 0;
  }

  absl::string_view bytes_;
  bool ok_ = true;
};

// The next record's payload; nothing if it is not all there.
std::optional<absl::string_view> TakeRecord(Reader& reader) {
  const absl::string_view payload = reader.Bytes(reader.Varint());
  if (!reader.ok()) return std::nullopt;
  return payload;
}

std::optional<RoutingLogHeader> ParseHeader(absl::string_view payload) {
  Reader reader(payload);
  RoutingLogHeader header;
  const uint64_t layers = reader.Varint(kMaxLayers);
  for (uint64_t layer = 0; layer < layers && reader.ok(); ++layer) {
    header.experts_per_layer.push_back(static_cast<int>(reader.Varint(kMaxExperts)));
  }
  header.top_k = static_cast<int>(reader.Varint(kMaxExperts));
  header.expert_bytes = static_cast<int64_t>(reader.Varint(int64_t{1} << 40));
  header.model = std::string(reader.Bytes(reader.Varint()));
  if (!reader.ok() || !reader.empty() || header.top_k < 1) return std::nullopt;
  return header;
}

// False if it is not the share of an expert among the `experts` of a layer.
bool ParseLoad(Reader& reader, int experts, int first, ExpertLoad* load) {
  const uint64_t distance = reader.Varint(kMaxExperts);
  const uint64_t tokens = reader.Varint(uint64_t{std::numeric_limits<int32_t>::max()} * 2 + 1);
  load->expert = first + static_cast<int32_t>(distance);
  load->tokens = static_cast<int32_t>(tokens / 2);
  load->weight =
      tokens % 2 == 0 ? static_cast<float>(load->tokens) : std::bit_cast<float>(reader.Fixed());
  return reader.ok() && load->expert < experts && load->tokens > 0 && std::isfinite(load->weight) &&
         load->weight >= 0;
}

bool ParseStep(absl::string_view payload, const RoutingLogHeader& header, RoutingTrace* trace) {
  Reader reader(payload);
  const uint64_t layers = reader.Varint(header.experts_per_layer.size());
  uint64_t layer = 0;
  for (uint64_t i = 0; i < layers; ++i) {
    layer += reader.Varint(kMaxLayers);
    if (!reader.ok() || layer >= header.experts_per_layer.size()) return false;
    const int experts = header.experts_per_layer[layer];
    LayerRouting& routing = trace->layers.emplace_back();
    routing.layer = static_cast<int32_t>(layer++);
    routing.experts.resize(reader.Varint(static_cast<uint64_t>(experts)));
    int first = 0;
    for (ExpertLoad& load : routing.experts) {
      if (!ParseLoad(reader, experts, first, &load)) return false;
      first = load.expert + 1;
    }
  }
  return reader.ok() && reader.empty();
}

}  // namespace

RoutingLogWriter::RoutingLogWriter(const RoutingLogHeader& header) : bytes_(kMagic) {
  AppendFixed(bytes_, kVersion);
  std::string payload;
  AppendVarint(payload, header.experts_per_layer.size());
  for (int experts : header.experts_per_layer) AppendVarint(payload, experts);
  AppendVarint(payload, header.top_k);
  AppendVarint(payload, header.expert_bytes);
  AppendRecord(payload, header.model);
  AppendRecord(bytes_, payload);
}

void RoutingLogWriter::BeginStep() { EndStep(); }

void RoutingLogWriter::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  sorted_.assign(experts.begin(), experts.end());
  std::sort(sorted_.begin(), sorted_.end(),
            [](const ExpertLoad& a, const ExpertLoad& b) { return a.expert < b.expert; });
  AppendVarint(step_, layer - last_layer_);
  AppendVarint(step_, sorted_.size());
  int first = 0;
  for (const ExpertLoad& load : sorted_) {
    const bool differs = load.weight != static_cast<float>(load.tokens);
    AppendVarint(step_, load.expert - first);
    AppendVarint(step_, 2 * static_cast<uint64_t>(load.tokens) + (differs ? 1 : 0));
    if (differs) AppendFixed(step_, std::bit_cast<uint32_t>(load.weight));
    first = load.expert + 1;
  }
  last_layer_ = layer + 1;
  ++step_layers_;
}

std::string RoutingLogWriter::Take() {
  EndStep();
  return std::exchange(bytes_, {});
}

void RoutingLogWriter::EndStep() {
  if (step_layers_ > 0) {
    std::string payload;
    AppendVarint(payload, step_layers_);
    AppendRecord(bytes_, payload + step_);
  }
  step_.clear();
  step_layers_ = 0;
  last_layer_ = 0;
}

absl::StatusOr<RoutingLog> ParseRoutingLog(absl::string_view bytes) {
  Reader reader(bytes);
  if (reader.Bytes(kMagic.size()) != kMagic) {
    return absl::DataLossError("this is no routing log (recorded by moed --record-routing)");
  }
  const uint32_t version = reader.Fixed();
  if (reader.ok() && version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the routing log has version ", version,
                                                      ", not ", kVersion, "; record it anew"));
  }
  const std::optional<absl::string_view> head = TakeRecord(reader);
  std::optional<RoutingLogHeader> header = head ? ParseHeader(*head) : std::nullopt;
  if (!header) return absl::DataLossError("the routing log's header is damaged or cut short");
  RoutingLog log = {.header = *std::move(header), .steps = {}};
  while (!reader.empty()) {
    const std::optional<absl::string_view> step = TakeRecord(reader);
    log.truncated = !step;
    if (step && !ParseStep(*step, log.header, &log.steps.emplace_back())) {
      return absl::DataLossError(
          absl::StrCat("step ", log.steps.size() - 1, " of the routing log is damaged"));
    }
  }
  return log;
}

}  // namespace moed::cache
