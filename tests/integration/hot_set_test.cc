// The hot set across restarts: a clean stop, kills at any moment, damaged and foreign files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using testing::HasSubstr;
using testing::Not;

class HotSetTest : public testing::Test {
 protected:
  HotSetTest() : path_(absl::StrCat(testing::TempDir(), "/hot_set_", getpid())) {
    std::filesystem::remove(path_);
  }
  ~HotSetTest() override {
    std::filesystem::remove(path_);
    std::filesystem::remove(path_ + ".new");
  }

  std::unique_ptr<DaemonProcess> Start() {
    auto daemon = std::make_unique<DaemonProcess>(
        std::vector<std::string>{absl::StrCat("--model=", MOED_DEMO_MODEL), "--expert-budget=30%",
                                 "--cpu-threads=1", "--kv-cache-memory=64MiB",
                                 absl::StrCat("--hot-set-file=", path_), "--hot-set-interval=0.1"});
    const auto channel =
        grpc::CreateChannel(daemon->WaitUntilListening(), grpc::InsecureChannelCredentials());
    inference_ = v1::Inference::NewStub(channel);
    experts_ = v1::Experts::NewStub(channel);
    EXPECT_TRUE(Eventually([&] {
      grpc::ClientContext context;
      v1::GetModelResponse response;
      return inference_->GetModel(&context, {}, &response).ok();
    }));
    return daemon;
  }

  int64_t Misses() {
    grpc::ClientContext context;
    v1::ExpertStats stats;
    EXPECT_TRUE(experts_->GetStats(&context, {}, &stats).ok());
    int64_t misses = 0;
    for (const v1::LayerStats& layer : stats.layers()) misses += layer.misses_total();
    return misses;
  }

  const std::string path_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Experts::Stub> experts_;
};

TEST_F(HotSetTest, ARestartBeginsWithWhatWasHot) {
  auto first = Start();
  EXPECT_TRUE(Generate(*inference_, TokensRequest(10, 10)).status.ok());
  const int64_t cold_misses = Misses();
  EXPECT_TRUE(Generate(*inference_, TokensRequest(10, 300)).status.ok());
  first->Signal(SIGTERM);
  EXPECT_EQ(first->WaitForExit(), 0);
  auto second = Start();
  EXPECT_THAT(second->Log(), HasSubstr("experts were resident"));
  EXPECT_TRUE(Generate(*inference_, TokensRequest(10, 10)).status.ok());
  EXPECT_LT(Misses(), cold_misses);
}

TEST_F(HotSetTest, AKilledDaemonLeavesAWholeFileOrNone) {
  std::mt19937 random(1);
  for (int round = 0; round < 6; ++round) {
    auto daemon = Start();
    EXPECT_THAT(daemon->Log(), Not(HasSubstr("starting cold"))) << round;
    grpc::ClientContext context;
    auto running = inference_->Generate(&context, TokensRequest(5, 4000));
    v1::GenerateResponse first;
    ASSERT_TRUE(running->Read(&first));
    absl::SleepFor(absl::Milliseconds(100 + random() % 200));
    daemon->Signal(SIGKILL);
    EXPECT_EQ(daemon->WaitForExit(), 128 + SIGKILL);
    EXPECT_FALSE(ReadStream(*running).status.ok());
  }
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(HotSetTest, ADamagedFileMeansAColdStartAndAWarning) {
  std::ofstream(path_) << "moedhots, but not really";
  auto daemon = Start();
  EXPECT_THAT(daemon->Log(), HasSubstr("starting cold"));
  EXPECT_TRUE(Generate(*inference_, TokensRequest(5, 5)).status.ok());
}

}  // namespace
}  // namespace moed::server
