#include "runtime/backend/bf12.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/bf12_window.h"

namespace moed::backend {
namespace {

// Neurons between the row that is decoded and the one that is fetched.
constexpr int64_t kDecodeAhead = 8;
// A tile's list is whole cache lines; one entry is the count.
constexpr int kEntriesPerLine = 128 / sizeof(Bf12TileEscape);
static_assert((kBf12MostTileEscapes + 1) % kEntriesPerLine == 0);
// Room beyond what a sample needs. An expert that needs more costs another look at all of them,
// which is cheaper than room that none uses.
constexpr int64_t kMostSpareEscapes = 120;

// The list of a tile, as it is written.
class TileList {
 public:
  TileList(Bf12TileEscape* entries, int capacity) : entries_(entries), capacity_(capacity) {
    std::fill_n(entries, capacity + 1, Bf12TileEscape());
  }
  bool Add(int neuron, Bf12Escape escape) {
    if (entries_[0].neuron == capacity_) return false;
    entries_[++entries_[0].neuron] = {.neuron = static_cast<uint16_t>(neuron), .escape = escape};
    return true;
  }

 private:
  Bf12TileEscape* entries_;
  int capacity_;
};

// Encodes one neuron of H values a row.
class NeuronEncoder {
 public:
  NeuronEncoder(int64_t hidden, int64_t width)
      : hidden_(hidden), width_(width), padded_(width), places_(width + kBf12PlacesBeyond) {}

  // `rows`: gate, up, down. `target`: header and rows. False if `list` is full.
  bool Encode(const std::array<const BFloat16*, 3>& rows, int neuron, std::byte* target,
              TileList& list) {
    Bf12Header header;
    bool fits = true;
    for (int part = 0; part < 3; ++part) {
      fits = fits && EncodeRow(rows[part], part, neuron, target, header, list);
    }
    std::memcpy(target, &header, sizeof(header));
    return fits;
  }

 private:
  bool EncodeRow(const BFloat16* row, int part, int neuron, std::byte* target, Bf12Header& header,
                 TileList& list) {
    const uint8_t base = ChooseBf12Base(row, hidden_);
    header.bases[part] = base;
    const BFloat16* values = row;
    if (hidden_ != width_) {
      std::copy_n(row, hidden_, padded_.begin());
      std::fill(padded_.begin() + hidden_, padded_.end(), Bf12Placeholder(base));
      values = padded_.data();
    }
    std::byte* const blocks = target + sizeof(Bf12Header) + part * width_ / 2 * 3;
    if (!EncodeBf12Blocks(values, width_ / kBf12BlockValues, base, blocks)) return true;
    const int64_t escapes = FindBf12Escapes(row, hidden_, base, places_.data());
    for (const uint16_t place : std::span(places_).first(escapes)) {
      const Bf12Escape escape = {static_cast<uint16_t>(part * width_ + place), row[place]};
      if (header.num_escapes < kBf12HeaderEscapes) {
        header.escapes[header.num_escapes] = escape;
      } else if (!list.Add(neuron, escape)) {
        return false;
      }
      if (header.num_escapes < kBf12ManyEscapes) ++header.num_escapes;
    }
    return true;
  }

  int64_t hidden_;
  int64_t width_;
  std::vector<BFloat16> padded_;
  std::vector<uint16_t> places_;
};

std::array<const BFloat16*, 3> RowsOf(const ExpertFormat& format, const std::byte* blob,
                                      int64_t neuron) {
  const auto* gate = reinterpret_cast<const BFloat16*>(blob + format.neuron_offset(neuron));
  return {gate, gate + format.row_values(), gate + 2 * format.row_values()};
}

const Bf12TileEscape* ListOf(const ExpertFormat& format, std::span<const std::byte> blob,
                             int64_t tile) {
  return reinterpret_cast<const Bf12TileEscape*>(
      blob.data() + format.neuron_offset(tile * kBf12TileNeurons) + format.tile_list_offset());
}

// Zeros for the neurons that fill the last tile up, and behind its list.
void ClearUnused(const ExpertFormat& format, std::span<std::byte> blob) {
  const int64_t last_tile = Bf12Tiles(format) - 1;
  const size_t list = Bf12TileOffset(format, last_tile) + format.tile_list_offset();
  const size_t neurons_end =
      format.neuron_offset(format.intermediate() - 1) + format.neuron_bytes();
  std::fill(blob.begin() + neurons_end, blob.begin() + list, std::byte{0});
  std::fill(blob.begin() + list + format.tile_list_bytes(), blob.end(), std::byte{0});
}

absl::Status NeuronError(int64_t neuron, const std::string& what) {
  return absl::DataLossError(absl::StrCat("bf12 neuron ", neuron, ": ", what));
}

// Checks positions and that they rise; `last` is the one before, and becomes this one.
absl::Status CheckEscape(const ExpertFormat& format, int64_t neuron, Bf12Escape escape, int& last) {
  const int64_t width = format.row_values();
  if (escape.position / width > 2 || escape.position % width >= format.hidden()) {
    return NeuronError(neuron,
                       absl::StrCat("escape at position ", escape.position, ", beyond its rows"));
  }
  if (escape.position <= last) return NeuronError(neuron, "escapes out of order");
  last = escape.position;
  return absl::OkStatus();
}

// One neuron; `list` runs through its tile's entries up to `list_end`.
absl::Status CheckNeuron(const ExpertFormat& format, int64_t neuron, const std::byte* data,
                         const Bf12TileEscape*& list, const Bf12TileEscape* list_end) {
  Bf12Header header;
  std::memcpy(&header, data, sizeof(header));
  for (const uint8_t base : header.bases) {
    if (base > kBf12MaxBase) return NeuronError(neuron, absl::StrCat("base ", base, " above 240"));
  }
  int last = -1;
  for (int i = 0; i < std::min<int>(header.num_escapes, kBf12HeaderEscapes); ++i) {
    absl::Status status = CheckEscape(format, neuron, header.escapes[i], last);
    if (!status.ok()) return status;
  }
  if (header.num_escapes <= kBf12HeaderEscapes) return absl::OkStatus();
  int count = kBf12HeaderEscapes;
  for (; list != list_end && list->neuron == neuron % kBf12TileNeurons; ++list, ++count) {
    absl::Status status = CheckEscape(format, neuron, list->escape, last);
    if (!status.ok()) return status;
  }
  if (header.num_escapes == std::min(count, kBf12ManyEscapes)) return absl::OkStatus();
  return NeuronError(neuron, absl::StrCat(header.num_escapes, " escapes, but ", count, " listed"));
}

}  // namespace

bool Bf12Supports(int64_t hidden) {
  return 3 * ExpertFormat(ExpertFormatKind::kBF12, hidden, 1).row_values() <= 65536;
}

Bf12ListedEscapes MeasureBf12Escapes(const ExpertFormat& format, std::span<const std::byte> blob) {
  Bf12ListedEscapes listed;
  std::vector<uint16_t> places(format.row_values() + kBf12PlacesBeyond);
  int64_t in_tile = 0;
  for (int64_t i = 0; i < format.intermediate(); ++i) {
    if (i % kBf12TileNeurons == 0) in_tile = 0;
    int64_t outside = 0;
    for (const BFloat16* row : RowsOf(format, blob.data(), i)) {
      const uint8_t base = ChooseBf12Base(row, format.hidden());
      outside += FindBf12Escapes(row, format.hidden(), base, places.data());
    }
    const int64_t in_list = std::max<int64_t>(outside - kBf12HeaderEscapes, 0);
    in_tile += in_list;
    listed.total += in_list;
    listed.most_in_tile = std::max(listed.most_in_tile, in_tile);
  }
  return listed;
}

Bf12ListedEscapes CountBf12Escapes(const ExpertFormat& format, std::span<const std::byte> blob) {
  Bf12ListedEscapes listed;
  for (int64_t tile = 0; tile < Bf12Tiles(format); ++tile) {
    const int64_t in_tile = ListOf(format, blob, tile)[0].neuron;
    listed.total += in_tile;
    listed.most_in_tile = std::max(listed.most_in_tile, in_tile);
  }
  return listed;
}

int Bf12TileEscapeCapacity(int64_t needed) {
  const int64_t wanted = needed + std::min(needed, kMostSpareEscapes);
  return Bf12ExactTileEscapeCapacity(std::min<int64_t>(wanted, kBf12MostTileEscapes));
}

int Bf12ExactTileEscapeCapacity(int64_t needed) {
  if (needed > kBf12MostTileEscapes) return -1;
  return static_cast<int>(needed / kEntriesPerLine + 1) * kEntriesPerLine - 1;
}

bool IsBf12TileEscapeCapacity(int capacity) {
  return capacity > 0 && capacity <= kBf12MostTileEscapes && (capacity + 1) % kEntriesPerLine == 0;
}

bool EncodeBf12(const ExpertFormat& source_format, std::span<const std::byte> source,
                const ExpertFormat& format, std::span<std::byte> blob) {
  NeuronEncoder encoder(format.hidden(), format.row_values());
  for (int64_t first = 0; first < format.intermediate(); first += kBf12TileNeurons) {
    std::byte* const tile = blob.data() + format.neuron_offset(first);
    TileList list(reinterpret_cast<Bf12TileEscape*>(tile + format.tile_list_offset()),
                  format.tile_escapes());
    const int64_t end = std::min(first + kBf12TileNeurons, format.intermediate());
    for (int64_t i = first; i < end; ++i) {
      if (!encoder.Encode(RowsOf(source_format, source.data(), i), static_cast<int>(i - first),
                          blob.data() + format.neuron_offset(i), list)) {
        return false;
      }
    }
  }
  ClearUnused(format, blob);
  return true;
}

int64_t Bf12Tiles(const ExpertFormat& format) {
  return (format.intermediate() + kBf12TileNeurons - 1) / kBf12TileNeurons;
}

size_t Bf12TileOffset(const ExpertFormat& format, int64_t tile) {
  return tile < Bf12Tiles(format) ? format.neuron_offset(tile * kBf12TileNeurons)
                                  : format.blob_bytes();
}

absl::Status ValidateBf12(const ExpertFormat& format, std::span<const std::byte> blob) {
  if (blob.size() != format.blob_bytes()) {
    return absl::DataLossError(
        absl::StrCat("bf12 expert of ", blob.size(), " bytes instead of ", format.blob_bytes()));
  }
  for (int64_t tile = 0; tile < Bf12Tiles(format); ++tile) {
    if (absl::Status status = ValidateBf12Tile(format, blob, tile); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ValidateBf12Tile(const ExpertFormat& format, std::span<const std::byte> blob,
                              int64_t tile) {
  const int64_t first = tile * kBf12TileNeurons;
  const std::byte* data = blob.data() + format.neuron_offset(first);
  const Bf12TileEscape* const list = ListOf(format, blob, tile);
  if (list[0].neuron > format.tile_escapes()) {
    return NeuronError(first, absl::StrCat("its tile lists ", list[0].neuron,
                                           " escapes in room for ", format.tile_escapes()));
  }
  const Bf12TileEscape* next = list + 1;
  const Bf12TileEscape* const list_end = next + list[0].neuron;
  const int64_t end = std::min(first + kBf12TileNeurons, format.intermediate());
  for (int64_t i = first; i < end; ++i, data += format.neuron_bytes()) {
    if (absl::Status status = CheckNeuron(format, i, data, next, list_end); !status.ok()) {
      return status;
    }
  }
  if (next != list_end) return NeuronError(first, "its tile lists escapes of no neuron");
  return absl::OkStatus();
}

void DecodeBf12(const ExpertFormat& format, const std::byte* blob, ExpertPart part, int64_t first,
                int64_t count, int64_t column, int64_t columns, BFloat16* target, int64_t stride) {
  const int64_t width = format.row_values();
  const int64_t row_begin = static_cast<int64_t>(part) * width;
  for (int64_t i = first; i < first + count; ++i, target += stride) {
    const std::byte* const neuron = blob + format.neuron_offset(i);
    const int64_t in_tile = i % kBf12TileNeurons;
    const auto& header = *reinterpret_cast<const Bf12Header*>(neuron);
    const auto* list = reinterpret_cast<const Bf12TileEscape*>(
        neuron - in_tile * format.neuron_bytes() + format.tile_list_offset());
    const std::byte* blocks =
        neuron + sizeof(Bf12Header) + (row_begin + column) / kBf12BlockValues * kBf12BlockBytes;
    DecodeBf12Blocks(blocks, columns / kBf12BlockValues, header.bases[static_cast<int>(part)],
                     kDecodeAhead * static_cast<int64_t>(format.neuron_bytes()), target);
    ForEachBf12Escape(header, list, static_cast<int>(in_tile), [&](const Bf12Escape& escape) {
      const int64_t at = escape.position - row_begin - column;
      if (at >= 0 && at < columns) target[at] = escape.bits;
    });
  }
}

}  // namespace moed::backend
