#include "runtime/backend/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

TEST(ThreadPoolTest, RunsEveryIndexOnce) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> runs(count);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; ++i) ++runs[i];
        });
        for (const auto& run : runs) ASSERT_EQ(run.load(), 1);
      }
    }
  }
}

TEST(ThreadPoolTest, ChunksStartAtMultiplesOfTheGrainWhateverTheThreads) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::vector<std::atomic<int64_t>> end_of_chunk(4);
    pool.ParallelFor(35, 10, [&](int64_t begin, int64_t end, int) {
      ASSERT_EQ(begin % 10, 0);
      end_of_chunk[begin / 10] = end;
    });
    EXPECT_THAT(std::vector<int64_t>(end_of_chunk.begin(), end_of_chunk.end()),
                testing::ElementsAre(10, 20, 30, 35));
  }
}

TEST(ThreadPoolTest, NamesWorkersByIndexAndNeverRunsOneTwiceAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<bool>> busy(4);
  pool.ParallelFor(1000, 1, [&](int64_t, int64_t, int worker) {
    ASSERT_GE(worker, 0);
    ASSERT_LT(worker, 4);
    ASSERT_FALSE(busy[worker].exchange(true));
    busy[worker] = false;
  });
}

// All four have to be inside at once for any to get out.
TEST(ThreadPoolTest, RunsOnAllThreadsAtOnce) {
  ThreadPool pool(4);
  std::atomic<int> arrived = 0;
  pool.ParallelFor(4, 1, [&](int64_t, int64_t, int) {
    ++arrived;
    while (arrived < 4) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 4);
}

TEST(ThreadPoolTest, ResultsAreVisibleAfterManyShortLoops) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.ParallelFor(64, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) ++values[i];
    });
  }
  EXPECT_THAT(values, testing::Each(20000));
}

TEST(ThreadPoolTest, WakesParkedWorkers) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::atomic<int> arrived = 0;
    pool.ParallelFor(2, 1, [&](int64_t, int64_t, int) {
      ++arrived;
      while (arrived < 2) std::this_thread::yield();
    });
  }
}

}  // namespace
}  // namespace moed::backend
