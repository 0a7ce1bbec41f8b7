// What the CPU's part of a layer's cold experts takes from the request to the answer (ColdWorkers),
// with this thread in the device's place: experts of Qwen3-30B-A3B's shape, one token each or more,
// in requests of several sizes that come a while after the last answer, as a layer's do; bf16 and
// bf12 in turn. Beside the time stands its ratio to a plain read of the same bytes by as many
// threads in the same run; the smallest request, of one tile, shows what an answer costs beside its
// work. With `link` a GPU reads host memory over its link meanwhile, also beside the plain read.
//
// usage: cold_workers_bench [threads, default as when serving] [microseconds between requests, 60]
//                           [tokens of an expert, 1] [link]
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cold_workers.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/dtype.h"
#include "tests/bench/link_reader.h"
#include "tests/bench/plain_read.h"

namespace moed::backend {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHidden = 2048;
constexpr int64_t kIntermediate = 768;
constexpr int kExperts = 64;
constexpr int kTilesPerExpert = kIntermediate / kColdTileNeurons;
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
  }

  // Between them, and only then, requests are answered.
  void Begin() { workers_.BeginStep(); }
  void End() { workers_.EndStep(); }

  // Of `tiles` tiles, from expert `first` on; microseconds until the answer was seen.
  double Ask(int first, int tiles) {
    const auto tokens = static_cast<int>(size_.max_rows);
    int items = 0;
    for (int left = tiles; left > 0; left -= kTilesPerExpert, ++items) {
      mailbox_.items[items] = {.expert = (first + items) % kExperts,
                               .first_neuron = 0,
                               .num_neurons = std::min(left, kTilesPerExpert) * kColdTileNeurons,
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
          const auto* words = reinterpret_cast<const uint64_t*>(experts.data);
          sink += SumOfWords(words + first * (kPiece / 8), (end - first) * (kPiece / 8));
        });
    best = std::max(best, static_cast<double>(experts.bytes) / MicrosecondsSince(begin));
  }
  return best * 1e6;
}

// One of the formats.
class Subject {
 public:
  Subject(ExpertFormatKind kind, const char* name, int threads, int tokens)
      : name_(name),
        format_(kind, kHidden, kIntermediate, kind == ExpertFormatKind::kBF12 ? kTileEscapes : 0),
        experts_(Pages(kExperts * format_.blob_bytes())) {
    FillExperts(format_, experts_.data);
    read_rate_ = ReadRate(experts_, threads);
    std::printf("%s, %d threads, %d tokens: plain read %.1f GB/s\n", name, threads, tokens,
                read_rate_ * 1e-9);
    requests_ = std::make_unique<Requests>(format_, experts_.data, threads, tokens);
  }

  void Measure(int tiles, double gap_microseconds, LinkReader* link) {
    requests_->Begin();
    if (link != nullptr) link->Rate();
    std::vector<double> times;
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto begin = Clock::now();
      while (MicrosecondsSince(begin) < gap_microseconds) {
      }
      times.push_back(requests_->Ask(expert_, tiles));
      expert_ = (expert_ + (tiles + kTilesPerExpert - 1) / kTilesPerExpert) % kExperts;
    }
    const double link_rate = link != nullptr ? link->Rate() : 0;
    requests_->End();
    Print(tiles, std::move(times), link_rate);
  }

 private:
  void Print(int tiles, std::vector<double> times, double link_rate) const {
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const double bytes = static_cast<double>(format_.blob_bytes()) * tiles / kTilesPerExpert;
    std::printf("%s %4d tiles  median %7.1f us  best %7.1f  p90 %7.1f  %6.1f GB/s  of read %.2f",
                name_, tiles, median, times.front(), times[times.size() * 9 / 10],
                bytes / median * 1e-3, bytes / median * 1e6 / read_rate_);
    std::printf(link_rate > 0 ? "  link %.1f GB/s\n" : "\n", link_rate * 1e-9);
    std::fflush(stdout);
  }

  const char* const name_;
  const ExpertFormat format_;
  const Memory experts_;
  double read_rate_ = 0;
  std::unique_ptr<Requests> requests_;
  int expert_ = 0;
};

}  // namespace
}  // namespace moed::backend

int main(int argc, char** argv) {
  using moed::backend::ExpertFormatKind;
  const int threads = argc > 1 ? std::atoi(argv[1]) : moed::backend::DefaultColdThreads();
  const double gap = argc > 2 ? std::atof(argv[2]) : 60.0;
  const int tokens = argc > 3 ? std::atoi(argv[3]) : 1;
  std::unique_ptr<moed::LinkReader> link;
  if (argc > 4) link = std::make_unique<moed::LinkReader>();
  moed::backend::Subject bf16(ExpertFormatKind::kBF16, "bf16", threads, tokens);
  moed::backend::Subject bf12(ExpertFormatKind::kBF12, "bf12", threads, tokens);
  for (const int tiles : {1, 96, 192, 288, 768, 3072}) {
    bf16.Measure(tiles, gap, link.get());
    bf12.Measure(tiles, gap, link.get());
  }
  return 0;
}
