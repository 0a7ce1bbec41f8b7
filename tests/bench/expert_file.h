// A checkpoint of one layer of experts, made up for a benchmark that reads it: bf16, normal
// weights. Deleted with its owner.
#pragma once

#include <cstdint>
#include <filesystem>

namespace moed::model {

struct ExpertShape {
  const char* name;
  int64_t hidden;
  int64_t intermediate;
  int experts;

  // Of all experts, in bf16.
  int64_t bytes() const { return 6 * hidden * intermediate * experts; }
};

class ExpertFile {
 public:
  // In the folder for temporary files.
  explicit ExpertFile(const ExpertShape& shape);
  ~ExpertFile();
  ExpertFile(const ExpertFile&) = delete;
  ExpertFile& operator=(const ExpertFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  void WriteConfig(const ExpertShape& shape) const;
  void WriteTensors(const ExpertShape& shape) const;

  std::filesystem::path path_;
};

}  // namespace moed::model
