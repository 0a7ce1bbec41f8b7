#include "runtime/backend/link_share_control.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace moed::backend {
namespace {

double ShareOf(const LinkShareControl& control) {
  return static_cast<double>(control.share()) / kAllOverLink;
}

// A machine whose link and CPU do so much per second; `hot` seconds of a step the device is busy
// whatever the link does.
struct Machine {
  double link;
  double cpu;
  double hot = 0;

  ColdStepTimes Run(uint32_t share, int64_t cost) const {
    ColdStepTimes times;
    times.link_cost = cost * share / kAllOverLink;
    times.cpu_cost = cost - times.link_cost;
    times.link_seconds = std::max(static_cast<double>(times.link_cost) / link, hot);
    times.cpu_seconds = static_cast<double>(times.cpu_cost) / cpu;
    return times;
  }
};

TEST(LinkShareControlTest, StartsWithAThird) {
  EXPECT_NEAR(ShareOf(LinkShareControl()), 1.0 / 3, 1e-4);
}

TEST(LinkShareControlTest, TheFirstMeasurementDecides) {
  const struct {
    ColdStepTimes times;
    double share;
  } cases[] = {
      {{.link_cost = 100, .link_seconds = 2, .cpu_cost = 150, .cpu_seconds = 1}, 0.25},
      {{.link_cost = 100, .link_seconds = 1, .cpu_cost = 50, .cpu_seconds = 1}, 2.0 / 3},
      {{.link_cost = 100, .link_seconds = 1, .cpu_cost = 1, .cpu_seconds = 1e6}, 31.0 / 32},
      {{.link_cost = 1, .link_seconds = 1e6, .cpu_cost = 100, .cpu_seconds = 1}, 1.0 / 32},
      // One side measured, or neither: the first guess stays.
      {{.link_cost = 100, .link_seconds = 2}, 1.0 / 3},
      {{.cpu_cost = 150, .cpu_seconds = 1}, 1.0 / 3},
      {{}, 1.0 / 3},
      {{.link_cost = 5, .link_seconds = 0, .cpu_cost = 5, .cpu_seconds = 0}, 1.0 / 3},
  };
  for (const auto& c : cases) {
    LinkShareControl control;
    control.Observe(c.times);
    EXPECT_NEAR(ShareOf(control), c.share, 1e-3);
  }
}

TEST(LinkShareControlTest, BothSidesEndTogetherWhateverTheMachine) {
  for (const Machine& machine : {Machine{51, 102}, Machine{51, 51}, Machine{30, 190}}) {
    LinkShareControl control;
    for (int step = 0; step < 40; ++step) control.Observe(machine.Run(control.share(), 1000000));
    const ColdStepTimes last = machine.Run(control.share(), 1000000);
    EXPECT_NEAR(last.link_seconds, last.cpu_seconds, 0.01 * last.cpu_seconds);
  }
}

TEST(LinkShareControlTest, FollowsAMachineThatChanges) {
  LinkShareControl control;
  for (int step = 0; step < 40; ++step) {
    control.Observe(Machine{51, 102}.Run(control.share(), 1000000));
  }
  EXPECT_NEAR(ShareOf(control), 51.0 / 153, 0.01);
  for (int step = 0; step < 40; ++step) {
    control.Observe(Machine{51, 51}.Run(control.share(), 1000000));
  }
  EXPECT_NEAR(ShareOf(control), 0.5, 0.01);
}

TEST(LinkShareControlTest, OneStepHeldUpMovesItLittle) {
  LinkShareControl control;
  for (int step = 0; step < 40; ++step) {
    control.Observe(Machine{51, 102}.Run(control.share(), 1000000));
  }
  control.Observe(Machine{51, 1}.Run(control.share(), 1000000));
  EXPECT_NEAR(ShareOf(control), 51.0 / 153, 0.06);
}

// While resident experts keep the device busy, the CPU gets what it can do in that time.
TEST(LinkShareControlTest, GivesTheCpuMoreWhileTheDeviceIsBusyAnyway) {
  const Machine machine{.link = 100, .cpu = 100, .hot = 6000};
  LinkShareControl control;
  for (int step = 0; step < 300; ++step) control.Observe(machine.Run(control.share(), 1000000));
  const ColdStepTimes last = machine.Run(control.share(), 1000000);
  EXPECT_NEAR(last.cpu_seconds, 6000, 300);
}

TEST(LinkShareControlTest, StaysInBoundsWhateverItIsTold) {
  std::mt19937 random(3);
  LinkShareControl control;
  for (int step = 0; step < 10000; ++step) {
    control.Observe({.link_cost = static_cast<int64_t>(random() % 1000),
                     .link_seconds = static_cast<double>(random() % 100),
                     .cpu_cost = static_cast<int64_t>(random() % 1000),
                     .cpu_seconds = static_cast<double>(random() % 100)});
    ASSERT_GE(control.share(), kAllOverLink / 32);
    ASSERT_LE(control.share(), kAllOverLink - kAllOverLink / 32);
  }
}

TEST(LinkShareControlTest, RatesAreOfStoredBytes) {
  const ExpertFormat format(ExpertFormatKind::kBF16, 64, 24);  // three tiles
  LinkShareControl control;
  EXPECT_EQ(control.rates(format).link, 0);
  EXPECT_EQ(control.rates(format).cpu, 0);
  control.Observe({.link_cost = 6, .link_seconds = 0.5, .cpu_cost = 3, .cpu_seconds = 0.125});
  EXPECT_DOUBLE_EQ(control.rates(format).link, 4.0 * static_cast<double>(format.blob_bytes()));
  EXPECT_DOUBLE_EQ(control.rates(format).cpu, 8.0 * static_cast<double>(format.blob_bytes()));
}

}  // namespace
}  // namespace moed::backend
