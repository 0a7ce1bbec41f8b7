#include "client/top_frame.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "client/expert_rates.h"
#include "client/heat_map.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

v1::ExpertStats StatsOf(int layers, const std::vector<int64_t>& tokens, double uptime_seconds) {
  v1::ExpertStats stats;
  stats.set_model("demo");
  stats.set_policy("lru");
  stats.set_slots(6);
  stats.mutable_serving()->set_uptime_seconds(uptime_seconds);
  stats.mutable_serving()->set_generation_tokens_total(static_cast<int64_t>(100 * uptime_seconds));
  for (int i = 0; i < layers; ++i) {
    v1::LayerStats* layer = stats.add_layers();
    layer->set_layer(i);
    layer->set_hits_total(30 * static_cast<int64_t>(uptime_seconds));
    layer->set_misses_total(10 * static_cast<int64_t>(uptime_seconds));
    layer->set_bytes_paged_total(static_cast<int64_t>(5e6 * uptime_seconds));
    layer->set_stall_seconds_total(0.125 * uptime_seconds);
    layer->set_resident(2);
    for (size_t e = 0; e < tokens.size(); ++e) {
      layer->add_expert_tokens_total(tokens[e]);
      layer->add_expert_resident(e % 2 == 0);
    }
  }
  return stats;
}

TEST(ExpertRatesTest, AreDifferencesOverTimeSummedOverLayers) {
  const v1::ExpertStats before = StatsOf(2, {1, 2}, 10);
  const v1::ExpertStats now = StatsOf(2, {4, 2}, 12);
  const ExpertRates rates = RatesBetween(&before, now);
  EXPECT_DOUBLE_EQ(rates.seconds, 2);
  EXPECT_DOUBLE_EQ(rates.generation_tokens_per_second, 100);
  EXPECT_EQ(rates.hits, 2 * 60);
  EXPECT_EQ(rates.misses, 2 * 20);
  EXPECT_DOUBLE_EQ(rates.bytes_paged_per_second, 1e7);
  EXPECT_DOUBLE_EQ(rates.stall_share, 0.25);
  EXPECT_EQ(rates.layers[1].tokens, (std::vector<int64_t>{3, 0}));
}

TEST(ExpertRatesTest, WithoutAnEarlierSnapshotOrAfterARestartCountFromTheStart) {
  const v1::ExpertStats now = StatsOf(1, {5}, 4);
  const v1::ExpertStats older_process = StatsOf(1, {900}, 5000);
  const v1::ExpertStats other_model = StatsOf(3, {1}, 2);
  for (const v1::ExpertStats* before :
       {static_cast<const v1::ExpertStats*>(nullptr), &older_process, &other_model}) {
    const ExpertRates rates = RatesBetween(before, now);
    EXPECT_DOUBLE_EQ(rates.seconds, 4);
    EXPECT_EQ(rates.layers[0].tokens, (std::vector<int64_t>{5}));
  }
}

TEST(HeatMapTest, ShowsShareByHeightAndResidencyByKind) {
  LayerRates layer;
  layer.tokens = {0, 100, 100, 400, 0};
  layer.is_resident = {true, true, false, true, false};
  EXPECT_EQ(HeatMapRow(layer, {.columns = 10}), "▁▅:█ ");
}

TEST(HeatMapTest, PutsSeveralExpertsIntoACellWhenColumnsAreFew) {
  LayerRates layer;
  layer.tokens = {10, 10, 0, 0, 10};
  layer.is_resident = {true, true, false, false, true};
  EXPECT_EQ(HeatMapRow(layer, {.columns = 3}), "▇ ▇");
  EXPECT_NE(HeatMapLegend(5, {.columns = 3}).find("2 experts a cell"), std::string::npos);
}

TEST(HeatMapTest, ALayerWithoutTrafficOrExpertsIsEmptyCells) {
  LayerRates layer;
  EXPECT_EQ(HeatMapRow(layer, {}), "");
  layer.tokens = {0, 0};
  layer.is_resident = {true, false};
  EXPECT_EQ(HeatMapRow(layer, {}), "▁ ");
}

TEST(TopFrameTest, ShowsTotalsAndALineForEachLayer) {
  const v1::ExpertStats stats = StatsOf(2, {8, 8, 8, 8}, 4);
  const std::string frame = TopFrame(stats, RatesBetween(nullptr, stats), {.columns = 120});
  EXPECT_EQ(frame,
            "demo  up 4 s  policy lru\n"
            "100.0 tokens/s  prompt 0.0 tokens/s  0.0 steps/s  running 0  waiting 0  KV 0.0 %\n"
            "experts  hit 75.0 %  paged 10 MB/s  stalled 25.0 % of the time  6 of 8 fit (0 B)\n"
            "resident ▁▃▅▇█  not resident ·:oO  (unused to hot)\n"
            "layer  hit rate    paged/s    in  experts\n"
            "    0    75.0 %     5 MB/s     2  ▅:▅:\n"
            "    1    75.0 %     5 MB/s     2  ▅:▅:\n");
}

TEST(TopFrameTest, FitsTheTerminal) {
  const v1::ExpertStats stats = StatsOf(48, std::vector<int64_t>(128, 3), 4);
  const TopLayout layout = {.columns = 60, .rows = 20, .color = true};
  const std::string frame = TopFrame(stats, RatesBetween(nullptr, stats), layout);
  EXPECT_EQ(std::count(frame.begin(), frame.end(), '\n'), 20);
  EXPECT_NE(frame.find("... and 34 more layers"), std::string::npos);
}

TEST(TopFrameTest, WithoutColorThereAreNoEscapes) {
  const v1::ExpertStats stats = StatsOf(1, {1, 2}, 4);
  const std::string frame = TopFrame(stats, RatesBetween(nullptr, stats), {});
  EXPECT_EQ(frame.find('\x1b'), std::string::npos);
}

TEST(TopFrameTest, AServerWithoutExpertsHasAFrame) {
  const v1::ExpertStats stats;
  EXPECT_FALSE(TopFrame(stats, RatesBetween(nullptr, stats), {.columns = 1, .rows = 1}).empty());
}

TEST(QuantitiesTest, AreShortAndCarryTheirUnit) {
  EXPECT_EQ(Bytes(0), "0 B");
  EXPECT_EQ(Bytes(999), "999 B");
  EXPECT_EQ(Bytes(1234567), "1.23 MB");
  EXPECT_EQ(Bytes(999.9e6), "1 GB");
  EXPECT_EQ(Count(9999), "9999");
  EXPECT_EQ(Count(30.5e9), "30.5G");
  EXPECT_EQ(Percent(1, 8), "12.5 %");
  EXPECT_EQ(Percent(0, 0), "-");
}

}  // namespace
}  // namespace moed::client
