// What the CPU's part of a layer's cold experts takes from the request to the answer (ColdWorkers),
// with this thread in the device's place: experts of Qwen3-30B-A3B's shape, one token each or more,
// in requests of several sizes that come a while after the last answer, as a layer's do. Beside the
// time stands its ratio to a plain read of the same bytes by as many threads in the same run; the
// smallest request, of one tile, shows what an answer costs beside its work.
//
// usage: cold_workers_bench [threads, default as when serving] [microseconds between requests, 60]
//                           [tokens of an expert, 1]
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cold_workers.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHidden = 2048;
constexpr int64_t kIntermediate = 768;
constexpr int kExperts = 64;
constexpr int kTurns = 60;
constexpr int kTileEscapes = 128;
constexpr size_t kPage = size_t{2} << 20;

double MicrosecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

struct Memory {
  explicit Memory(size_t num_bytes)
      : bytes(num_bytes), data(static_cast<std::byte*>(std::aligned_alloc(kPage, num_bytes))) {
    madvise(data, bytes, MADV_HUGEPAGE);
    std::memset(data, 0, bytes);
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  size_t bytes;
  std::byte* data;
};

size_t Pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Normal weights, the same in every expert but for where its neurons begin.
void FillExperts(const ExpertFormat& format, std::byte* experts) {
  const ExpertFormat bf16(ExpertFormatKind::kBF16, kHidden, kIntermediate);
  std::vector<BFloat16> values(bf16.blob_bytes() / sizeof(BFloat16));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (BFloat16& value : values) value = ToBFloat16(normal(random));
  const auto* blob = reinterpret_cast<const std::byte*>(values.data());
  if (format.kind() == ExpertFormatKind::kBF16) {
    std::memcpy(experts, blob, bf16.blob_bytes());
  } else {
    ABSL_RAW_CHECK(
        EncodeBf12(bf16, {blob, bf16.blob_bytes()}, format, {experts, format.blob_bytes()}),
        "room for the escapes");
  }
  for (int e = 1; e < kExperts; ++e) {
    std::memcpy(experts + e * format.blob_bytes(), experts, format.blob_bytes());
  }
}

// The other side of the mailbox.
class Requests {
 public:
  Requests(const ExpertFormat& format, const std::byte* experts, int threads, int tokens)
      : size_{.max_rows = tokens,
              .max_items = kExperts,
              .max_pairs = int64_t{kExperts} * tokens,
              .row_values = format.row_values(),
              .hidden = kHidden},
        memory_(Pages(ColdMailboxBytes(size_))),
        mailbox_(CutColdMailbox(size_, memory_.data)),
        workers_({.format = format,
                  .layers = {experts},
                  .num_threads = threads,
                  .experts_per_layer = {},
                  .next_routers = nullptr},
                 mailbox_) {
    std::fill_n(mailbox_.x, tokens * kHidden, ToBFloat16(0.5f));
    workers_.BeginStep();
  }
  ~Requests() { workers_.EndStep(); }

  // Of `tiles` tiles, from expert `first` on; microseconds until the answer was seen.
  double Ask(int first, int tiles) {
    const int tiles_per_expert = ColdTiles(kIntermediate);
    const auto tokens = static_cast<int>(size_.max_rows);
    int items = 0;
    for (int left = tiles; left > 0; left -= tiles_per_expert, ++items) {
      mailbox_.items[items] = {.expert = (first + items) % kExperts,
                               .first_neuron = 0,
                               .num_neurons = std::min(left, tiles_per_expert) * kColdTileNeurons,
                               .first_pair = items * tokens,
                               .num_pairs = tokens};
      for (int r = 0; r < tokens; ++r) {
        mailbox_.pairs[items * tokens + r] = {.row = r, .weight = 1.0f};
      }
    }
    *mailbox_.request = {.sequence = sequence_, .layer = 0, .rows = tokens, .num_items = items};
    const auto begin = Clock::now();
    std::atomic_ref<uint32_t>(mailbox_.request->sequence).store(++sequence_);
    const std::atomic_ref<uint32_t> reply(mailbox_.reply->sequence);
    while (reply.load(std::memory_order_acquire) != sequence_) {
    }
    return MicrosecondsSince(begin);
  }

 private:
  ColdMailboxSize size_;
  Memory memory_;
  ColdMailbox mailbox_;
  ColdWorkers workers_;
  uint32_t sequence_ = 0;
};

// Bytes a second that `threads` threads read of the experts.
double ReadRate(const Memory& experts, int threads) {
  ThreadPool pool(threads);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int turn = 0; turn < 5; ++turn) {
    const auto begin = Clock::now();
    constexpr size_t kPiece = size_t{1} << 18;
    pool.ParallelFor(
        static_cast<int64_t>(experts.bytes / kPiece), 1, [&](int64_t first, int64_t end, int) {
          const auto* data = reinterpret_cast<const uint64_t*>(experts.data);
          const auto* from = data + first * (kPiece / 8);
          sink += std::accumulate(from, from + (end - first) * (kPiece / 8), uint64_t{0});
        });
    best = std::max(best, static_cast<double>(experts.bytes) / MicrosecondsSince(begin));
  }
  return best * 1e6;
}

void Measure(ExpertFormatKind kind, const char* name, int threads, double gap_microseconds,
             int tokens) {
  const ExpertFormat format(kind, kHidden, kIntermediate,
                            kind == ExpertFormatKind::kBF12 ? kTileEscapes : 0);
  const Memory experts(Pages(kExperts * format.blob_bytes()));
  FillExperts(format, experts.data);
  const double rate = ReadRate(experts, threads);
  std::printf("%s, %d threads, %d tokens: plain read %.1f GB/s\n", name, threads, tokens,
              rate * 1e-9);
  Requests requests(format, experts.data, threads, tokens);
  int expert = 0;
  for (const int tiles : {1, 96, 192, 288, 768}) {
    std::vector<double> times;
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto begin = Clock::now();
      while (MicrosecondsSince(begin) < gap_microseconds) {
      }
      times.push_back(requests.Ask(expert, tiles));
      expert = (expert + tiles / 96 + 1) % kExperts;
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const double bytes = static_cast<double>(format.blob_bytes()) * tiles / 96;
    std::printf("%s %4d tiles  median %7.1f us  best %7.1f  p90 %7.1f  %6.1f GB/s  of read %.2f\n",
                name, tiles, median, times.front(), times[times.size() * 9 / 10],
                bytes / median * 1e-3, bytes / median * 1e6 / rate);
  }
}

}  // namespace
}  // namespace moed::backend

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : moed::backend::DefaultColdThreads();
  const double gap = argc > 2 ? std::atof(argv[2]) : 60.0;
  const int tokens = argc > 3 ? std::atoi(argv[3]) : 1;
  moed::backend::Measure(moed::backend::ExpertFormatKind::kBF16, "bf16", threads, gap, tokens);
  moed::backend::Measure(moed::backend::ExpertFormatKind::kBF12, "bf12", threads, gap, tokens);
  return 0;
}
