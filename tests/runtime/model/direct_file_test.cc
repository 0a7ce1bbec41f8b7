#include "runtime/model/direct_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/input_file.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::byte>;

constexpr size_t kBlock = 4096;
// A few requests, and an end within a block.
constexpr size_t kFileBytes = (5 << 20) + 1234;

// A file of random bytes, not in the page cache (if its file system has one beside it).
class RandomFile {
 public:
  explicit RandomFile(const fs::path& folder)
      : path_(folder / ("moed_direct_file_" + std::to_string(getpid()))), contents_(kFileBytes) {
    std::mt19937_64 random(7);
    for (std::byte& byte : contents_) byte = static_cast<std::byte>(random());
    descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT_EQ(write(descriptor_, contents_.data(), contents_.size()), ssize_t{kFileBytes});
    Drop();
  }
  ~RandomFile() {
    close(descriptor_);
    fs::remove(path_);
  }
  RandomFile(const RandomFile&) = delete;
  RandomFile& operator=(const RandomFile&) = delete;

  void Drop() {
    fdatasync(descriptor_);
    posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
  }
  // Brings a part into the page cache.
  void Cache(size_t offset, size_t bytes) {
    Bytes read(bytes);
    EXPECT_GE(pread(descriptor_, read.data(), bytes, static_cast<off_t>(offset)), 0);
  }
  size_t CachedBlocks() const {
    void* const mapped = mmap(nullptr, kFileBytes, PROT_READ, MAP_SHARED, descriptor_, 0);
    std::vector<unsigned char> resident((kFileBytes + kBlock - 1) / kBlock);
    EXPECT_EQ(mincore(mapped, kFileBytes, resident.data()), 0);
    munmap(mapped, kFileBytes);
    return std::count_if(resident.begin(), resident.end(), [](auto flags) { return flags & 1; });
  }

  const fs::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  std::span<const std::byte> Part(size_t offset, size_t bytes) const {
    return std::span(contents_).subspan(offset, bytes);
  }

 private:
  fs::path path_;
  Bytes contents_;
  int descriptor_ = -1;
};

bool Equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// Reads into the middle of a buffer, `place` bytes behind the start of a block, and expects the
// bytes of the file there and all others untouched.
void ExpectRead(InputFile& file, const RandomFile& random_file, size_t offset, size_t bytes,
                size_t place) {
  constexpr std::byte kUntouched{0x5a};
  const size_t room = (2 * kBlock + place + bytes + kBlock) / kBlock * kBlock;
  auto* const buffer = static_cast<std::byte*>(std::aligned_alloc(kBlock, room));
  std::fill_n(buffer, room, kUntouched);
  std::byte* const begin = buffer + kBlock + place;
  const absl::Status status = file.ReadAt(offset, std::span(begin, bytes), Reread::kNever);
  const auto untouched = [&](std::byte byte) { return byte == kUntouched; };
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(Equal(std::span(begin, bytes), random_file.Part(offset, bytes)))
      << bytes << " bytes at " << offset << ", placed at " << place;
  EXPECT_TRUE(std::all_of(buffer, begin, untouched)) << "wrote before";
  EXPECT_TRUE(std::all_of(begin + bytes, buffer + room, untouched)) << "wrote behind";
  std::free(buffer);
}

// Of every kind: within a block and over many, in a place alike and in another, part of it cached.
void ExpectRandomReads(const fs::path& folder) {
  RandomFile random_file(folder);
  auto file = InputFile::Open(random_file.path(), "weights");
  ASSERT_TRUE(file.ok()) << file.status();
  std::mt19937 random(11);
  for (int i = 0; i < 300; ++i) {
    if (i % 10 == 0) random_file.Drop();
    if (i % 3 == 0) random_file.Cache(random() % kFileBytes, random() % (256 << 10));
    const size_t offset = random() % kFileBytes;
    const size_t most = i % 2 == 0 ? 3 * kBlock : kFileBytes;
    const size_t bytes =
        i % 7 == 0 ? kFileBytes - offset : std::min<size_t>(random() % most, kFileBytes - offset);
    const size_t places[] = {offset % kBlock, offset % 512, random() % kBlock};
    ExpectRead(*file, random_file, offset, bytes, places[i % 3]);
  }
}

TEST(DirectFileTest, ReadsWhatPlainReadsRead) { ExpectRandomReads(fs::temp_directory_path()); }

TEST(DirectFileTest, AFileSystemThatRefusesIsReadPlainly) {
  if (!fs::is_directory("/dev/shm")) GTEST_SKIP() << "no tmpfs";
  ExpectRandomReads("/dev/shm");
}

TEST(DirectFileTest, LeavesThePageCacheAsItWas) {
  RandomFile random_file(fs::temp_directory_path());
  DirectFile file(random_file.descriptor());
  Bytes read(kFileBytes);
  if (file.Read(0, read) != kFileBytes) GTEST_SKIP() << "direct reads are refused here";
  // Asking whether a piece is there brings in its first block.
  EXPECT_LT(random_file.CachedBlocks(), kFileBytes / kBlock / 100);
}

TEST(DirectFileTest, WithoutTheFileNothingIsReadAndNothingIsTriedAgain) {
  DirectFile file(-1);
  Bytes read(100);
  EXPECT_EQ(file.Read(0, read), 0u);
  EXPECT_EQ(file.Read(0, read), 0u);
}

TEST(DirectFileTest, AFileCutShortIsNamedAsByPlainReads) {
  RandomFile random_file(fs::temp_directory_path());
  auto file = InputFile::Open(random_file.path(), "weights");
  ASSERT_TRUE(file.ok()) << file.status();
  for (const size_t left : {size_t{kFileBytes - 1}, size_t{3 << 20}, size_t{4097}, size_t{0}}) {
    fs::resize_file(random_file.path(), left);
    Bytes read(kFileBytes);
    const absl::Status direct = file->ReadAt(0, read, Reread::kNever);
    EXPECT_EQ(direct.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(direct, file->ReadAt(0, read)) << direct;
    EXPECT_TRUE(Equal(std::span(read).first(left), random_file.Part(0, left)));
    EXPECT_EQ(file->ReadAt(left, std::span(read).first(10), Reread::kNever).code(),
              absl::StatusCode::kDataLoss);
  }
}

}  // namespace
}  // namespace moed::model
