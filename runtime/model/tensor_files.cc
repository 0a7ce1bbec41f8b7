#include "runtime/model/tensor_files.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/model/json.h"

namespace moed::model {
namespace {

using backend::DType;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = 100'000'000;

absl::StatusOr<SafetensorsHeader> ReadHeader(const InputFile& file) {
  std::string prefix(kSafetensorsPrefixBytes, '\0');
  if (file.bytes() < prefix.size()) {
    return ParseSafetensorsPrefix("", file.bytes(), file.name()).status();
  }
  absl::Status status = file.ReadAt(0, std::as_writable_bytes(std::span(prefix)));
  if (!status.ok()) return status;
  const absl::StatusOr<uint64_t> bytes = ParseSafetensorsPrefix(prefix, file.bytes(), file.name());
  if (!bytes.ok()) return bytes.status();
  std::string header(*bytes, '\0');
  status = file.ReadAt(kSafetensorsPrefixBytes, std::as_writable_bytes(std::span(header)));
  if (!status.ok()) return status;
  return ParseSafetensorsHeader(header, file.bytes(), file.name());
}

// File name -> the tensors that the index expects there.
using WeightMap = std::map<std::string, std::vector<std::string>>;

absl::StatusOr<WeightMap> ReadIndex(const CheckpointDirectory& directory) {
  const std::string path = directory.PathOf(kIndexFile);
  const absl::StatusOr<std::string> text = directory.ReadFile(kIndexFile, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(*text, path);
  if (!json.ok()) return json.status();
  const auto weight_map = json->find("weight_map");
  if (weight_map == json->end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": key \"weight_map\" is missing"));
  }
  WeightMap files;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map must map names to file names"));
    }
    files[file.get<std::string>()].push_back(tensor);
  }
  if (files.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map is empty"));
  return files;
}

}  // namespace

absl::Status StoredTensor::Read(uint64_t offset, std::span<std::byte> destination,
                                Reread reread) const {
  absl::Status status = file->ReadAt(entry.offset + offset, destination, reread);
  if (status.ok()) return status;
  return absl::DataLossError(
      absl::StrCat("tensor \"", entry.name, "\" cannot be read: ", status.message()));
}

absl::StatusOr<TensorFiles> TensorFiles::Open(const CheckpointDirectory& directory) {
  if (directory.Has(kSingleFile)) return OpenFile(directory, kSingleFile);
  if (!directory.Has(kIndexFile)) {
    return absl::NotFoundError(absl::StrCat(
        directory.path(), ": neither ", kSingleFile, " nor ", kIndexFile,
        " is there; convert other weights to safetensors, or use --load-format dummy"));
  }
  TensorFiles files;
  absl::Status status = files.OpenIndexed(directory);
  if (!status.ok()) return status;
  return files;
}

absl::StatusOr<TensorFiles> TensorFiles::OpenFile(const CheckpointDirectory& directory,
                                                  std::string_view name) {
  TensorFiles files;
  absl::StatusOr<std::vector<StoredTensor>> tensors = files.AddFile(directory, name);
  if (!tensors.ok()) return tensors.status();
  for (StoredTensor& tensor : *tensors) {
    std::string key = tensor.entry.name;
    files.tensors_.try_emplace(std::move(key), std::move(tensor));
  }
  return files;
}

absl::Status TensorFiles::OpenIndexed(const CheckpointDirectory& directory) {
  const absl::StatusOr<WeightMap> index = ReadIndex(directory);
  if (!index.ok()) return index.status();
  for (const auto& [name, expected] : *index) {
    absl::StatusOr<std::vector<StoredTensor>> tensors = AddFile(directory, name);
    if (!tensors.ok()) return tensors.status();
    absl::flat_hash_map<std::string, StoredTensor> by_name;
    for (StoredTensor& tensor : *tensors) {
      std::string key = tensor.entry.name;
      by_name.try_emplace(std::move(key), std::move(tensor));
    }
    for (const std::string& tensor : expected) {
      const auto found = by_name.find(tensor);
      if (found == by_name.end()) {
        return absl::DataLossError(absl::StrCat(directory.PathOf(name), ": tensor \"", tensor,
                                                "\" is missing, which the index says is there"));
      }
      tensors_.try_emplace(tensor, std::move(found->second));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredTensor>> TensorFiles::AddFile(const CheckpointDirectory& directory,
                                                               std::string_view name) {
  absl::StatusOr<InputFile> file = directory.OpenFile(name);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsHeader> header = ReadHeader(*file);
  if (!header.ok()) return header.status();
  files_.push_back(std::make_unique<OpenedFile>(*std::move(file), std::move(header->metadata)));
  std::vector<StoredTensor> tensors;
  tensors.reserve(header->tensors.size());
  for (TensorEntry& entry : header->tensors) {
    tensors.push_back({std::move(entry), &files_.back()->file, &files_.back()->metadata});
  }
  return tensors;
}

absl::StatusOr<const StoredTensor*> TensorFiles::Require(const std::vector<std::string>& names,
                                                         const std::vector<int64_t>& shape) const {
  const StoredTensor* tensor = nullptr;
  for (size_t i = 0; tensor == nullptr && i < names.size(); ++i) tensor = Find(names[i]);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(files_.front()->file.name(), ": tensor \"", names.front(),
                     "\" is missing here and in the files beside it, but config.json implies it"));
  }
  const TensorEntry& entry = tensor->entry;
  if (entry.shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(tensor->file->name(), ": tensor \"", entry.name, "\" has shape [",
                     absl::StrJoin(entry.shape, ", "), "], but config.json implies [",
                     absl::StrJoin(shape, ", "), "]"));
  }
  if (entry.dtype != DType::kBF16 && entry.dtype != DType::kF16 && entry.dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat(tensor->file->name(), ": tensor \"", entry.name,
                                                   "\" is ", entry.dtype_name,
                                                   "; only BF16, F16 and F32 are supported"));
  }
  return tensor;
}

const StoredTensor* TensorFiles::Find(std::string_view name) const {
  const auto found = tensors_.find(std::string(name));
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace moed::model
