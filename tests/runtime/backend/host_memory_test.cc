#include "runtime/backend/host_memory.h"

#include <cstdint>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

TEST(HostMemoryTest, GivesZeroedMemoryAtPageOrHugePageBoundaries) {
  for (size_t bytes : {size_t{1}, size_t{5000}, (size_t{2} << 20) + 1, size_t{9} << 20}) {
    const Buffer buffer = AllocateHostMemory(bytes, "a test").value();
    ASSERT_EQ(buffer.bytes(), bytes);
    const size_t boundary = bytes < (size_t{2} << 20) ? 4096 : size_t{2} << 20;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % boundary, 0u);
    EXPECT_EQ(buffer.data()[0], std::byte{0});
    EXPECT_EQ(buffer.data()[bytes - 1], std::byte{0});
    buffer.data()[0] = buffer.data()[bytes - 1] = std::byte{1};
  }
}

TEST(HostMemoryTest, GivesAnEmptyBufferForNoBytes) {
  EXPECT_TRUE(AllocateHostMemory(0, "nothing").value().empty());
}

TEST(HostMemoryTest, RefusesMoreThanThereIsNamingWhatAndHowMuch) {
  for (size_t bytes : {size_t{1} << 50, SIZE_MAX}) {
    const auto buffer = AllocateHostMemory(bytes, "the expert arena");
    EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(buffer.status().message()),
                testing::AllOf(testing::HasSubstr("the expert arena"),
                               testing::HasSubstr("MiB are available"),
                               testing::HasSubstr("--expert-budget")));
  }
}

}  // namespace
}  // namespace moed::backend
