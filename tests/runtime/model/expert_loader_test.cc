#include "runtime/model/expert_loader.h"

#include <atomic>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace moed::model {
namespace {

// 64 values wide: experts of 3 MB, which readers share, with 8192 neurons.
class CountingExperts : public ExpertSource {
 public:
  explicit CountingExperts(int64_t neurons)
      : format_(backend::ExpertFormatKind::kBF16, 64, neurons) {}
  const backend::ExpertFormat& format() const override { return format_; }

  // Adds one to every byte of its share.
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override {
    most_shares = std::max(most_shares.load(), share.count);
    if (key.expert == failing_expert && share.index == share.count / 2) {
      return absl::DataLossError("bad sector");
    }
    const size_t begin = blob.size() * share.index / share.count;
    const size_t end = blob.size() * (share.index + 1) / share.count;
    for (std::byte& byte : blob.subspan(begin, end - begin)) {
      byte = static_cast<std::byte>(static_cast<int>(byte) + 1);
    }
    return absl::OkStatus();
  }

  std::atomic<int> failing_expert = -1;
  mutable std::atomic<int> most_shares = 0;

 private:
  backend::ExpertFormat format_;
};

std::vector<ExpertLoader::Completion> WaitForAll(ExpertLoader& loader) {
  std::vector<ExpertLoader::Completion> all, some;
  while (loader.outstanding() > 0) {
    loader.Wait(&some);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

TEST(ExpertLoaderTest, ThreadsShareALargeExpertAndWriteEachByteOnce) {
  const CountingExperts source(8192);
  constexpr int kReads = 20;
  std::vector<std::vector<std::byte>> blobs(kReads,
                                            std::vector<std::byte>(source.format().blob_bytes()));
  ExpertLoader loader(source, 4);
  for (int i = 0; i < kReads; ++i) loader.Start({0, i}, i, blobs[i]);
  const auto completions = WaitForAll(loader);
  ASSERT_EQ(completions.size(), kReads);
  std::vector<int> completed(kReads);
  for (const auto& completion : completions) {
    EXPECT_TRUE(completion.status.ok());
    ++completed[completion.slot];
  }
  EXPECT_EQ(completed, std::vector<int>(kReads, 1));
  EXPECT_EQ(source.most_shares, 4);
  const std::vector<std::byte> expected(source.format().blob_bytes(), std::byte{1});
  for (const auto& blob : blobs) EXPECT_TRUE(blob == expected);
}

TEST(ExpertLoaderTest, SmallExpertsAreReadWhole) {
  const CountingExperts source(32);
  std::vector<std::byte> blob(source.format().blob_bytes());
  ExpertLoader loader(source, 4);
  loader.Start({0, 0}, 0, blob);
  EXPECT_TRUE(WaitForAll(loader).front().status.ok());
  EXPECT_EQ(source.most_shares, 1);
}

TEST(ExpertLoaderTest, AFailedShareFailsItsExpertAndNoOther) {
  CountingExperts source(8192);
  source.failing_expert = 1;
  std::vector<std::vector<std::byte>> blobs(3,
                                            std::vector<std::byte>(source.format().blob_bytes()));
  ExpertLoader loader(source, 3);
  for (int i = 0; i < 3; ++i) loader.Start({0, i}, i, blobs[i]);
  const auto completions = WaitForAll(loader);
  ASSERT_EQ(completions.size(), 3u);
  for (const auto& completion : completions) {
    EXPECT_EQ(completion.status.code(),
              completion.slot == 1 ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk);
  }
}

TEST(ExpertLoaderTest, EndsWithReadsQueuedAndBegun) {
  const CountingExperts source(8192);
  std::vector<std::vector<std::byte>> blobs(16,
                                            std::vector<std::byte>(source.format().blob_bytes()));
  ExpertLoader loader(source, 2);
  for (int i = 0; i < 16; ++i) loader.Start({0, i}, i, blobs[i]);
}

}  // namespace
}  // namespace moed::model
