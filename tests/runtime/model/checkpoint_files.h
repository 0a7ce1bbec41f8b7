// Checkpoint folders that tests write.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace moed::model {

// A folder that goes away with its owner.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Writes `text` to the file `name`, whose folders are made.
  void Write(const std::string& name, std::string_view text) const;

 private:
  std::filesystem::path path_;
};

struct TensorToWrite {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// A safetensors file with these tensors, in this order.
std::string SafetensorsFile(const std::vector<TensorToWrite>& tensors);

// A copy of a golden checkpoint, to be damaged.
void CopyGolden(const std::string& name, const TemporaryDirectory& directory);

std::string ReadText(const std::filesystem::path& file);

}  // namespace moed::model
