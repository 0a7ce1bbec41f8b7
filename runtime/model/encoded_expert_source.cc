#include "runtime/model/encoded_expert_source.h"

#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/encoded_layout.h"
#include "runtime/model/tensor_checksums.h"

namespace moed::model {
namespace {

using backend::ExpertFormat;
using backend::ExpertFormatKind;

// The first layer with experts; -1 if there is none.
int FirstMoeLayer(const ModelConfig& config) {
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (config.layers[layer].is_moe) return layer;
  }
  return -1;
}

absl::Status Refused(const StoredTensor& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(tensor.file->name(), ": ", what));
}

// The value of `key`, or an empty text.
std::string Metadata(const StoredTensor& tensor, const char* key) {
  const auto found = tensor.metadata->find(key);
  return found == tensor.metadata->end() ? "" : found->second;
}

absl::Status CheckEncoding(const StoredTensor& tensor) {
  const std::string version = Metadata(tensor, kEncodedVersionKey);
  if (version != kEncodedVersion) {
    return Refused(tensor, absl::StrCat("experts encoded in version \"", version,
                                        "\", but this moed reads version ", kEncodedVersion,
                                        "; convert the checkpoint again with this moed"));
  }
  const std::string format = Metadata(tensor, kEncodedFormatKey);
  if (format != backend::ExpertFormatName(ExpertFormatKind::kBF12)) {
    return Refused(tensor, absl::StrCat("experts in the format \"", format,
                                        "\", which this moed does not know"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpertFormat> ReadFormat(const ModelConfig& config, const StoredTensor& tensor) {
  if (absl::Status status = CheckEncoding(tensor); !status.ok()) return status;
  const std::string text = Metadata(tensor, kEncodedEscapesKey);
  int escapes = 0;
  if (!absl::SimpleAtoi(text, &escapes) || !backend::IsBf12TileEscapeCapacity(escapes)) {
    return Refused(tensor, absl::StrCat("\"", text, "\" is no room for escapes of a tile"));
  }
  if (!backend::Bf12Supports(config.hidden)) {
    return Refused(tensor, absl::StrCat("bf12 cannot hold experts of hidden size ", config.hidden));
  }
  return ExpertFormat(ExpertFormatKind::kBF12, config.hidden, config.expert_intermediate, escapes);
}

}  // namespace

bool EncodedExpertSource::IsIn(const ModelConfig& config, const TensorFiles& files) {
  const int layer = FirstMoeLayer(config);
  return layer >= 0 && files.Find(EncodedExpertsName(layer)) != nullptr;
}

absl::StatusOr<std::unique_ptr<EncodedExpertSource>> EncodedExpertSource::Create(
    const ModelConfig& config, const TensorFiles& files) {
  const StoredTensor& first = *files.Find(EncodedExpertsName(FirstMoeLayer(config)));
  const absl::StatusOr<ExpertFormat> format = ReadFormat(config, first);
  if (!format.ok()) return format.status();
  std::unique_ptr<EncodedExpertSource> source(
      new EncodedExpertSource(*format, config.router.num_experts));
  source->layers_.resize(config.layers.size());
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (!config.layers[layer].is_moe) continue;
    absl::Status status = source->AddLayer(layer, files);
    if (!status.ok()) return status;
  }
  return source;
}

absl::Status EncodedExpertSource::AddLayer(int layer, const TensorFiles& files) {
  const std::string name = EncodedExpertsName(layer);
  const StoredTensor* tensor = files.Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(EncodedExpertsFile(layer), ": tensor \"", name,
                                                   "\" is missing; copy the folder again"));
  }
  if (absl::Status status = CheckEncoding(*tensor); !status.ok()) return status;
  if (Metadata(*tensor, kEncodedEscapesKey) != absl::StrCat(format_.tile_escapes())) {
    return Refused(*tensor, "encoded otherwise than the layers before it");
  }
  const TensorEntry& entry = tensor->entry;
  const std::vector<int64_t> shape = {num_experts_, static_cast<int64_t>(format_.blob_bytes())};
  if (entry.dtype != backend::DType::kU8 || entry.shape != shape) {
    return Refused(*tensor,
                   absl::StrCat("tensor \"", name, "\" is ", entry.dtype_name, " [",
                                absl::StrJoin(entry.shape, ", "), "], but config.json implies U8 [",
                                absl::StrJoin(shape, ", "), "]"));
  }
  absl::StatusOr<std::vector<uint32_t>> checksums = ReadChecksums(*tensor, num_experts_ * tiles_);
  if (!checksums.ok()) return checksums.status();
  auto verified = std::make_unique<std::atomic<bool>[]>(checksums->size());
  layers_[layer] = {tensor, *std::move(checksums), std::move(verified)};
  return absl::OkStatus();
}

absl::Status EncodedExpertSource::Read(cache::ExpertKey key, ReadShare share,
                                       std::span<std::byte> blob) const {
  if (key.layer < 0 || key.layer >= static_cast<int>(layers_.size()) ||
      layers_[key.layer].tensor == nullptr || key.expert < 0 || key.expert >= num_experts_) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", key.layer, " has no expert ", key.expert));
  }
  const Layer& layer = layers_[key.layer];
  absl::Status status = ReadTiles(layer, key.expert, tiles_ * share.index / share.count,
                                  tiles_ * (share.index + 1) / share.count, share.reread, blob);
  if (status.ok()) return status;
  return absl::DataLossError(absl::StrCat(layer.tensor->file->name(), ": expert ", key.expert,
                                          " of layer ", key.layer, ": ", status.message(),
                                          "; copy the file again or convert anew"));
}

absl::Status EncodedExpertSource::ReadTiles(const Layer& layer, int expert, int64_t first,
                                            int64_t end, Reread reread,
                                            std::span<std::byte> blob) const {
  if (first == end) return absl::OkStatus();
  const size_t begin = backend::Bf12TileOffset(format_, first);
  const std::span<std::byte> target =
      blob.subspan(begin, backend::Bf12TileOffset(format_, end) - begin);
  absl::Status status = layer.tensor->Read(expert * format_.blob_bytes() + begin, target, reread);
  for (int64_t tile = first; status.ok() && tile < end; ++tile) {
    status = CheckTile(layer, expert, tile, blob);
  }
  return status;
}

absl::Status EncodedExpertSource::CheckTile(const Layer& layer, int expert, int64_t tile,
                                            std::span<const std::byte> blob) const {
  const auto index = static_cast<size_t>(expert * tiles_ + tile);
  std::atomic<bool>& verified = layer.verified[index];
  if (!verified.load(std::memory_order_relaxed)) {
    const size_t begin = backend::Bf12TileOffset(format_, tile);
    const size_t bytes = backend::Bf12TileOffset(format_, tile + 1) - begin;
    if (Checksum(blob.subspan(begin, bytes)) != layer.checksums[index]) {
      return absl::DataLossError("its bytes are not those of its checksums");
    }
    verified.store(true, std::memory_order_relaxed);
  }
  return backend::ValidateBf12Tile(format_, blob, tile);
}

}  // namespace moed::model
