// A zip archive in memory, its files stored as they are: for handing a few small files to programs
// that expect one. A value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moed::server {

class ZipArchive {
 public:
  // `name`: without folders. REQUIRES: fewer than 65536 files and less than 4 GiB in all.
  void Add(std::string_view name, std::string_view contents);
  // The archive's bytes; nothing may be added after.
  std::string Finish() &&;

 private:
  std::string files_;
  std::string directory_;
  uint16_t num_files_ = 0;
};

}  // namespace moed::server
