// The CPU's part of cold experts behind its mailbox; the test's thread is the device.
#include "runtime/backend/cold_workers.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/aligned_allocator.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cold_division.h"

namespace moed::backend {
namespace {

constexpr int kLayers = 2;
constexpr int kExperts = 6;
constexpr int kMaxRows = 40;
constexpr int kTopK = 2;

// Layers of random experts, their mailbox, and the formula in double precision.
class Experts {
 public:
  Experts(ExpertFormatKind kind, int64_t hidden, int64_t intermediate)
      : bf16_(ExpertFormatKind::kBF16, hidden, intermediate),
        format_(kind, hidden, intermediate,
                kind == ExpertFormatKind::kBF12 ? Bf12TileEscapeCapacity(100) : 0),
        bf16_blobs_(hwy::AllocateAligned<std::byte>(Bytes(bf16_))),
        blobs_(hwy::AllocateAligned<std::byte>(Bytes(format_))) {
    Fill();
    FillRouters();
    const ColdMailboxSize size = ColdMailboxSizeFor(options());
    memory_ = hwy::AllocateAligned<std::byte>(ColdMailboxBytes(size) + kColdMailboxAlignment);
    std::memset(memory_.get(), 0, ColdMailboxBytes(size) + kColdMailboxAlignment);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    mailbox_ = CutColdMailbox(size, memory_.get() + (-address % kColdMailboxAlignment));
  }

  DeviceExpertsOptions options() const {
    return {.format = format_,
            .experts_per_layer = std::vector<int>(kLayers, kExperts),
            .top_k = kTopK,
            .max_tokens = kMaxRows,
            .host_experts = blobs_.get(),
            .cold_threads = 3,
            .next_routers = next_routers_};
  }
  const ColdMailbox& mailbox() const { return mailbox_; }
  const ExpertFormat& format() const { return format_; }

  // y += weight * (neurons [first, first + count) of the expert)(x).
  void AddReference(int layer, int expert, int64_t first, int64_t count, const BFloat16* x,
                    float weight, double* y) const {
    const int64_t hidden = bf16_.hidden();
    const int64_t row = bf16_.row_values();
    const auto* blob = reinterpret_cast<const BFloat16*>(
        bf16_blobs_.get() + (layer * kExperts + expert) * bf16_.blob_bytes());
    for (int64_t i = first; i < first + count; ++i) {
      const BFloat16* neuron = blob + 3 * i * row;
      double gate = 0;
      double up = 0;
      for (int64_t h = 0; h < hidden; ++h) {
        gate += double{ToFloat(neuron[h])} * ToFloat(x[h]);
        up += double{ToFloat(neuron[row + h])} * ToFloat(x[h]);
      }
      const double act = ToFloat(ToBFloat16(static_cast<float>(gate / (1 + std::exp(-gate)) * up)));
      for (int64_t h = 0; h < hidden; ++h) y[h] += weight * act * ToFloat(neuron[2 * row + h]);
    }
  }

 private:
  static size_t Bytes(const ExpertFormat& format) {
    return kLayers * kExperts * format.blob_bytes();
  }

  void Fill() {
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 2.0f / std::sqrt(static_cast<float>(bf16_.hidden())));
    for (int i = 0; i < kLayers * kExperts; ++i) {
      std::byte* const blob = bf16_blobs_.get() + i * bf16_.blob_bytes();
      std::memset(blob, 0, bf16_.blob_bytes());
      auto* values = reinterpret_cast<BFloat16*>(blob);
      for (int64_t r = 0; r < 3 * bf16_.intermediate(); ++r) {
        for (int64_t h = 0; h < bf16_.hidden(); ++h) {
          values[r * bf16_.row_values() + h] = ToBFloat16(normal(random));
        }
      }
      std::byte* const target = blobs_.get() + i * format_.blob_bytes();
      if (format_.kind() == ExpertFormatKind::kBF16) {
        std::memcpy(target, blob, bf16_.blob_bytes());
      } else {
        EXPECT_TRUE(
            EncodeBf12(bf16_, {blob, bf16_.blob_bytes()}, format_, {target, format_.blob_bytes()}));
      }
    }
  }

  void FillRouters() {
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    auto routers = std::make_shared<NextRouters>(kLayers);
    (*routers)[0].layer = 1;
    for (int64_t i = 0; i < kExperts * bf16_.hidden(); ++i) {
      (*routers)[0].weights.push_back(ToBFloat16(normal(random)));
    }
    next_routers_ = routers;
  }

  ExpertFormat bf16_;
  ExpertFormat format_;
  std::shared_ptr<const NextRouters> next_routers_;
  hwy::AlignedFreeUniquePtr<std::byte[]> bf16_blobs_;
  hwy::AlignedFreeUniquePtr<std::byte[]> blobs_;
  hwy::AlignedFreeUniquePtr<std::byte[]> memory_;
  ColdMailbox mailbox_;
};

// Posts random requests and checks their answers.
class Device {
 public:
  explicit Device(const Experts& experts, uint32_t seed = 1)
      : experts_(experts), box_(experts.mailbox()), random_(seed) {}

  // Returns the request's cost.
  int64_t Post(int layer, int rows) {
    const int64_t hidden = box_.hidden;
    for (int r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < hidden; ++h) {
        box_.x[r * box_.row_values + h] = ToBFloat16(static_cast<float>(random_() % 200) / 100 - 1);
      }
    }
    want_.assign(rows * hidden, 0.0);
    int32_t pairs = 0;
    int32_t items = 0;
    int64_t cost = 0;
    for (int expert = 0; expert < kExperts; ++expert) {
      ColdItem item = DrawItem(expert);
      item.first_pair = pairs;
      for (int r = 0; r < rows; ++r) {
        if (random_() % 3 != 0 || pairs == kMaxRows * kTopK) continue;
        const float weight = static_cast<float>(random_() % 100) / 100;
        box_.pairs[pairs++] = {r, weight};
        experts_.AddReference(layer, expert, item.first_neuron, item.num_neurons,
                              box_.x + r * box_.row_values, weight, want_.data() + r * hidden);
      }
      item.num_pairs = pairs - item.first_pair;
      if (item.num_pairs == 0) continue;
      box_.items[items++] = item;
      cost += ColdCost(ColdTiles(item.num_neurons), item.num_pairs);
    }
    box_.request->layer = layer;
    box_.request->rows = rows;
    box_.request->num_items = items;
    std::atomic_ref<uint32_t>(box_.request->sequence).store(++sequence_, std::memory_order_release);
    return cost;
  }

  bool Answered() const {
    const std::atomic_ref<uint32_t> reply(box_.reply->sequence);
    return reply.load(std::memory_order_acquire) == sequence_;
  }

  void ExpectAnswer() {
    while (!Answered()) std::this_thread::yield();
    double difference = 0;
    double size = 1e-30;
    for (size_t i = 0; i < want_.size(); ++i) {
      difference += std::pow(box_.sums[i] - want_[i], 2);
      size += std::pow(want_[i], 2);
    }
    EXPECT_LE(std::sqrt(difference / size), 3e-3);
  }

 private:
  // All of an expert, or what another left of it.
  ColdItem DrawItem(int expert) {
    const auto neurons = static_cast<int32_t>(experts_.format().intermediate());
    const auto tiles = static_cast<uint32_t>(ColdTiles(neurons));
    const auto first =
        random_() % 2 == 0 ? 0 : static_cast<int32_t>(random_() % tiles) * kColdTileNeurons;
    return {.expert = expert, .first_neuron = first, .num_neurons = neurons - first};
  }

  const Experts& experts_;
  const ColdMailbox& box_;
  std::mt19937 random_;
  std::vector<double> want_;
  uint32_t sequence_ = 0;
};

TEST(ColdWorkersTest, AnswersEveryRequestWithTheExpertsSums) {
  for (const auto kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    for (const auto& [hidden, neurons] :
         {std::pair(40, 16), std::pair(256, 100), std::pair(64, 400)}) {
      SCOPED_TRACE(testing::Message() << ExpertFormatName(kind) << " " << hidden << " " << neurons);
      const Experts experts(kind, hidden, neurons);
      ColdWorkers workers(ColdWorkersOptionsFor(experts.options()), experts.mailbox());
      Device device(experts);
      for (int step = 0; step < 4; ++step) {
        workers.BeginStep();
        int64_t cost = 0;
        for (const int rows : {1, 2, 9, kMaxRows, 1}) {
          cost += device.Post(rows % kLayers, rows);
          device.ExpectAnswer();
        }
        const ColdCpuWork work = workers.EndStep();
        EXPECT_EQ(work.cost, cost);
        EXPECT_GT(work.seconds, 0);
      }
    }
  }
}

TEST(ColdWorkersTest, AnswersRightWhateverItHasFetchedAhead) {
  for (const auto kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    const Experts experts(kind, /*hidden=*/256, /*intermediate=*/200);
    ColdWorkers workers(ColdWorkersOptionsFor(experts.options()), experts.mailbox());
    Device device(experts);
    workers.BeginStep();
    // On a busy machine the first guesses may come late.
    for (int turn = 0; turn < 60 || (workers.neurons().fetched_ahead == 0 && turn < 6000); ++turn) {
      // Layer 1 is guessed from layer 0; the next request comes at once, midway or late.
      device.Post(turn % kLayers, 1 + turn % 4);
      device.ExpectAnswer();
      std::this_thread::sleep_for(std::chrono::microseconds(turn % 3 * 500));
    }
    workers.EndStep();
    const ColdNeurons neurons = workers.neurons();
    EXPECT_GT(neurons.fetched_ahead, 0);
    EXPECT_LT(neurons.fetched_ahead, neurons.computed);
  }
}

TEST(ColdWorkersTest, WakesForAStepAfterParking) {
  const Experts experts(ExpertFormatKind::kBF16, 64, 32);
  ColdWorkers workers(ColdWorkersOptionsFor(experts.options()), experts.mailbox());
  Device device(experts);
  for (int step = 0; step < 20; ++step) {
    std::this_thread::sleep_for(std::chrono::milliseconds(step % 3 * 2));
    workers.BeginStep();
    device.Post(0, 3);
    device.ExpectAnswer();
    workers.EndStep();
  }
}

TEST(ColdWorkersTest, LooksForRequestsOnlyWithinAStep) {
  const Experts experts(ExpertFormatKind::kBF16, 64, 32);
  ColdWorkers workers(ColdWorkersOptionsFor(experts.options()), experts.mailbox());
  Device device(experts);
  device.Post(0, 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(device.Answered());
  workers.BeginStep();
  device.ExpectAnswer();
}

TEST(ColdWorkersTest, StopsWithinAStepAndParked) {
  const Experts experts(ExpertFormatKind::kBF16, 64, 32);
  for (const bool in_step : {true, false}) {
    ColdWorkers workers(ColdWorkersOptionsFor(experts.options()), experts.mailbox());
    if (in_step) workers.BeginStep();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
}

}  // namespace
}  // namespace moed::backend
