// The way into a file for bytes that are read once: copied from the page cache if they are there,
// else read around it. A page cache that is full must give up other pages for every new one, which
// takes more of the CPU than a disk is worth. Belongs to an InputFile; reading is thread-safe and
// takes each thread 2 MiB that it keeps.
//
// Not every file system has both ways (in tmpfs everything is cached anyway, network file systems
// often cannot tell): where one is refused, nothing more is tried.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

namespace moed::model {

class DirectFile {
 public:
  // `descriptor` reads the file through the page cache and must outlive this.
  explicit DirectFile(int descriptor) : cached_(descriptor) {}
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  // Fills `destination` from `offset` on and returns how much of it: all, but where the file ends
  // before, is refused or cannot be read. A plain read of the rest tells which.
  size_t Read(uint64_t offset, std::span<std::byte> destination);

 private:
  void Open();
  size_t ReadCached(uint64_t offset, std::span<std::byte> destination);
  size_t ReadAround(uint64_t offset, std::span<std::byte> destination);
  size_t Refuse();

  int cached_;
  int direct_ = -1;
  std::once_flag opened_;
  std::atomic<bool> refused_ = false;
};

}  // namespace moed::model
