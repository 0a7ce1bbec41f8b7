// Every series of the metrics port moves under load, or stands here with the reason why it need
// not; and every one of them stands in the operator's guide.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/model_host.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

constexpr const char* kPaths[] = {"/metrics", "/metrics/experts"};

// Series that may stay zero in this test, by how they begin.
struct Still {
  const char* prefix;
  const char* reason;
};
constexpr Still kMayStayZero[] = {
    {"moed_cold_neurons_total{", "there is no GPU beside which the CPU could compute"},
    {"moed_cold_bytes_per_second{", "nor a link"},
    {"moed_experts_dead{", "an expert is dead after 4096 steps without a token"},
    {"moed_requests_finished_total{finished_reason=\"failed\"", "no step fails here"},
    {"moed_expert_is_resident{", "most experts find no place in an eighth of the slots"},
    {"moed_expert_tokens_total{", "made-up prompts do not reach every expert"},
};
// Of these no series at all need move.
constexpr const char* kStillFamilies[] = {"moed_cold_neurons_total", "moed_cold_bytes_per_second",
                                          "moed_experts_dead"};

bool MayStayZero(const std::string& series) {
  return std::any_of(std::begin(kMayStayZero), std::end(kMayStayZero),
                     [&](const Still& still) { return absl::StartsWith(series, still.prefix); });
}

class MetricsTest : public testing::Test {
 protected:
  static Options SmallBudgets() {
    Options options;
    options.model = MOED_DEMO_MODEL;
    options.cpu_threads = 1;
    options.expert_budget = "12%";
    options.max_num_seqs = 4;
    options.kv_cache_bytes = 1 << 20;  // too little for four requests: one is preempted
    return options;
  }
  MetricsTest() : server_(SmallBudgets(), LoadModel) { server_.WaitUntilLoaded(); }

  // Requests of all kinds: long and short, too many at once, one that is cancelled, one that a stop
  // string ends, one that is refused.
  void Load() {
    constexpr int kClients = 8;
    std::vector<std::thread> clients;
    clients.reserve(kClients);
    for (int client = 0; client < kClients; ++client) {
      clients.emplace_back([this, client] {
        v1::GenerateRequest request = TokensRequest(0, 60);
        for (int i = 0; i < 200; ++i) {
          request.mutable_tokens()->add_ids((client * 257 + i * 31) % 2000);
        }
        request.mutable_sampling()->set_temperature(1.5);
        EXPECT_TRUE(Generate(server_.inference(), request).status.ok());
      });
    }
    for (std::thread& client : clients) client.join();
    v1::GenerateRequest stopped = TokensRequest(4, 200);
    stopped.mutable_stopping()->add_stop("e");
    EXPECT_TRUE(Generate(server_.inference(), stopped).status.ok());
    grpc::ClientContext context;
    auto cancelled = server_.inference().Generate(&context, TokensRequest(4, 300));
    v1::GenerateResponse response;
    EXPECT_TRUE(cancelled->Read(&response));
    context.TryCancel();
    cancelled->Finish();
    EXPECT_TRUE(Eventually([this] {
      return absl::StrContains(HttpGet(server_.metrics_port(), "/metrics"),
                               "finished_reason=\"cancelled\",model_name=\"demo\"} 1");
    }));
    EXPECT_FALSE(Generate(server_.inference(), v1::GenerateRequest()).status.ok());
  }

  // Keeps of each series the value that is furthest from zero. Buckets of histograms are their
  // counts, by size: some stay empty.
  void Scrape() {
    for (const char* path : kPaths) {
      for (absl::string_view line : absl::StrSplit(HttpGet(server_.metrics_port(), path), '\n')) {
        const size_t space = line.rfind(' ');
        if (line.empty() || line[0] == '#' || space == line.npos) continue;
        if (absl::StrContains(line, "_bucket{")) continue;
        double value = 0;
        ASSERT_TRUE(absl::SimpleAtod(line.substr(space + 1), &value)) << line;
        double& furthest = furthest_[std::string(line.substr(0, space))];
        if (std::abs(value) > std::abs(furthest)) furthest = value;
      }
    }
  }

  std::set<std::string> Families() {
    std::set<std::string> families;
    for (const char* path : kPaths) {
      for (absl::string_view line : absl::StrSplit(HttpGet(server_.metrics_port(), path), '\n')) {
        const std::vector<std::string> words = absl::StrSplit(line, ' ');
        if (words.size() > 2 && words[1] == "HELP") families.insert(words[2]);
      }
    }
    return families;
  }

  TestServer server_;
  std::map<std::string, double> furthest_;  // by series
};

TEST_F(MetricsTest, NoSeriesStaysZeroUnderLoad) {
  std::atomic<bool> done = false;
  std::thread scraper([this, &done] {
    while (!done) Scrape();
  });
  Load();
  done = true;
  scraper.join();
  Scrape();
  ASSERT_GT(furthest_.size(), 400);
  std::map<std::string, bool> family_moved;
  for (const auto& [series, value] : furthest_) {
    EXPECT_TRUE(value != 0 || MayStayZero(series)) << series << " never moved";
    family_moved[series.substr(0, series.find('{'))] |= value != 0;
  }
  for (const char* family : kStillFamilies) family_moved.erase(family);
  for (const auto& [family, moved] : family_moved) EXPECT_TRUE(moved) << family << " never moved";
}

TEST_F(MetricsTest, TheGuideKnowsEverySeriesAndNoOther) {
  ASSERT_TRUE(Generate(server_.inference(), TokensRequest(8, 40)).status.ok());
  std::ifstream file(MOED_OPERATIONS_GUIDE);
  std::stringstream text;
  text << file.rdbuf();
  std::set<std::string> named;
  for (absl::string_view part : absl::StrSplit(text.str(), '`')) {
    if (!absl::StartsWith(part, "moed_") && !absl::StartsWith(part, "vllm:")) continue;
    named.emplace(part.substr(0, part.find('{')));
  }
  named.erase("vllm:");
  const std::set<std::string> families = Families();
  ASSERT_GT(families.size(), 30);
  EXPECT_THAT(named, testing::ContainerEq(families));
}

}  // namespace
}  // namespace moed::server
