#include "runtime/model/file_expert_source.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/model/expert_pieces.h"

namespace moed::model {
namespace {

using backend::ExpertPart;
using backend::SizeOf;

// The first way of naming that the files use for the layer's first expert; fused ones too.
const ExpertNames& NamesInUse(const std::vector<ExpertNames>& names, int layer,
                              const TensorFiles& files) {
  for (const ExpertNames& candidate : names) {
    if (files.Find(FillIn(candidate.gate, layer, 0)) != nullptr ||
        files.Find(FillIn(candidate.all_gate_up, layer, 0)) != nullptr) {
      return candidate;
    }
  }
  return names.front();
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileExpertSource>> FileExpertSource::Create(
    const ModelConfig& config, const Family& family, const TensorFiles& files) {
  const backend::ExpertFormat format(backend::ExpertFormatKind::kBF16, config.hidden,
                                     config.expert_intermediate);
  std::unique_ptr<FileExpertSource> source(new FileExpertSource(format, config.router.num_experts));
  source->layers_.resize(config.layers.size());
  const std::vector<ExpertNames> names = ExpertTensorNames(family);
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (!config.layers[layer].is_moe) continue;
    const ExpertNames& used = NamesInUse(names, layer, files);
    const bool fused = files.Find(FillIn(used.all_gate_up, layer, 0)) != nullptr;
    absl::Status status =
        fused ? source->AddFusedLayer(layer, used, files) : source->AddLayer(layer, used, files);
    if (!status.ok()) return status;
  }
  return source;
}

absl::Status FileExpertSource::AddLayer(int layer, const ExpertNames& names,
                                        const TensorFiles& files) {
  const std::vector<int64_t> up_shape = {format_.intermediate(), format_.hidden()};
  const std::vector<int64_t> down_shape = {format_.hidden(), format_.intermediate()};
  for (int expert = 0; expert < num_experts_; ++expert) {
    Slices slices;
    const std::string_view patterns[] = {names.gate, names.up, names.down};
    for (int part = 0; part < 3; ++part) {
      const absl::StatusOr<const StoredTensor*> tensor =
          files.Require({FillIn(patterns[part], layer, expert)}, part == 2 ? down_shape : up_shape);
      if (!tensor.ok()) return tensor.status();
      slices[part].tensor = *tensor;
    }
    layers_[layer].push_back(slices);
  }
  return absl::OkStatus();
}

absl::Status FileExpertSource::AddFusedLayer(int layer, const ExpertNames& names,
                                             const TensorFiles& files) {
  const int64_t hidden = format_.hidden();
  const int64_t intermediate = format_.intermediate();
  const auto gate_up = files.Require({FillIn(names.all_gate_up, layer, 0)},
                                     {num_experts_, 2 * intermediate, hidden});
  if (!gate_up.ok()) return gate_up.status();
  const auto down =
      files.Require({FillIn(names.all_down, layer, 0)}, {num_experts_, hidden, intermediate});
  if (!down.ok()) return down.status();
  const uint64_t matrix = static_cast<uint64_t>(hidden * intermediate);
  const uint64_t up_bytes = matrix * SizeOf(*(*gate_up)->entry.dtype);
  const uint64_t down_bytes = matrix * SizeOf(*(*down)->entry.dtype);
  for (int expert = 0; expert < num_experts_; ++expert) {
    layers_[layer].push_back({{{*gate_up, 2 * expert * up_bytes},
                               {*gate_up, (2 * expert + 1) * up_bytes},
                               {*down, expert * down_bytes}}});
  }
  return absl::OkStatus();
}

absl::Status FileExpertSource::Read(cache::ExpertKey key, ReadShare share,
                                    std::span<std::byte> blob) const {
  if (key.layer < 0 || key.layer >= static_cast<int>(layers_.size()) || key.expert < 0 ||
      key.expert >= static_cast<int>(layers_[key.layer].size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", key.layer, " has no expert ", key.expert));
  }
  const Slices& slices = layers_[key.layer][key.expert];
  StoredParts stored;
  for (int part = 0; part < 3; ++part) {
    const TensorEntry& entry = slices[part].tensor->entry;
    stored[part] = {*entry.dtype, entry.offset + slices[part].offset};
  }
  const auto read = [&](ExpertPart part, int64_t first_row, const backend::Tensor& rows) {
    const Slice& slice = slices[static_cast<size_t>(part)];
    const uint64_t row_bytes = rows.dim(1) * SizeOf(rows.dtype());
    return slice.tensor->Read(
        slice.offset + first_row * row_bytes,
        std::span(rows.As<std::byte>(), static_cast<size_t>(rows.num_bytes())), share.reread);
  };
  return EncodeInPieces(format_, stored, share, read, blob);
}

}  // namespace moed::model
