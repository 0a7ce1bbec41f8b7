#include "runtime/backend/cpu/cold_fetch.h"

#include <algorithm>

#include "runtime/backend/cpu/spin_wait.h"

namespace moed::backend {
namespace {

// What stays in a thread's part of its core's cache until it is computed.
constexpr size_t kMostBytesPerThread = 1 << 20;
// Neurons that a thread fetches side by side: no fewer than ColdExperts computes in a piece.
constexpr int kRunNeurons = 16;

// False: stopped.
bool FetchBytes(const std::byte* begin, const std::byte* end, absl::FunctionRef<bool()> stop) {
  constexpr size_t kLine = 64;
  constexpr size_t kBetweenLooks = 2048;
  for (const std::byte* at = begin; at < end; at += kBetweenLooks) {
    if (stop()) return false;
    for (size_t i = 0; i < kBetweenLooks; i += kLine) {
      __builtin_prefetch(at + i, /*rw=*/0, /*locality=*/2);
    }
  }
  return true;
}

}  // namespace

ColdFetch::ColdFetch(ColdForecast& forecast, const ExpertFormat& format,
                     std::span<const std::byte* const> layers, int num_threads)
    : forecast_(forecast),
      format_(format),
      layers_(layers.begin(), layers.end()),
      workers_(num_threads) {}

void ColdFetch::Begin(const ColdMailbox& mailbox) {
  guess_before_ = guess_;
  request_layer_ = mailbox.request->layer;
  guess_ = {guess_.number + 1, forecast_.Begin(mailbox) ? forecast_.layer() : -1};
  scored_.store(0, std::memory_order_relaxed);
}

std::span<const FetchedNeurons> ColdFetch::FetchedBy(int worker) const {
  const Worker& own = workers_[worker];
  if (guess_before_.layer != request_layer_ || own.guess != guess_before_.number) return {};
  return own.fetched;
}

int ColdFetch::FirstOfPart(int part) const {
  return forecast_.num_experts() * part / static_cast<int>(workers_.size());
}

const std::byte* ColdFetch::ScoreWeights(int worker) const {
  return guess_.layer < 0 ? nullptr : forecast_.WeightsOf(FirstOfPart(worker));
}

void ColdFetch::ScoreOwn(int worker) {
  if (guess_.layer >= 0) ScorePart(worker, worker);
}

void ColdFetch::ScoreOthers(int worker) {
  if (AllScored()) return;
  for (int part = 0; part < static_cast<int>(workers_.size()); ++part) ScorePart(part, worker);
}

void ColdFetch::ScorePart(int part, int worker) {
  std::atomic<uint64_t>& last = workers_[part].scored;
  if (last.load(std::memory_order_relaxed) == guess_.number) return;
  if (last.exchange(guess_.number, std::memory_order_relaxed) == guess_.number) return;
  const int first = FirstOfPart(part);
  forecast_.Score(first, FirstOfPart(part + 1) - first, &workers_[worker].x);
  scored_.fetch_add(1, std::memory_order_release);
}

bool ColdFetch::AllScored() const {
  return guess_.layer < 0 ||
         scored_.load(std::memory_order_acquire) == static_cast<int>(workers_.size());
}

void ColdFetch::WaitForScores() const {
  SpinWait spin;
  while (!AllScored()) spin.Pause();
}

// Every num_threads-th run of the guessed experts, the likeliest first. Of an expert that is
// divided the CPU has the last neurons, so these come first.
void ColdFetch::Fetch(int share, int worker, absl::FunctionRef<bool()> stop) {
  if (guess_.layer < 0) return;
  WaitForScores();
  Worker& own = workers_[worker];
  if (own.guess != guess_.number) own.fetched.clear();  // else it has a share already
  own.guess = guess_.number;
  forecast_.Choose(&own.order, &own.experts);
  const auto intermediate = static_cast<int32_t>(format_.intermediate());
  const auto threads = static_cast<int>(workers_.size());
  size_t bytes = 0;
  int turn = 0;
  for (const int32_t expert : own.experts) {
    const std::byte* const blob = layers_[guess_.layer] + expert * format_.blob_bytes();
    for (int32_t run = (intermediate - 1) / kRunNeurons; run >= 0; --run) {
      if (turn++ % threads != share) continue;
      const int32_t first = run * kRunNeurons;
      const int32_t count = std::min(kRunNeurons, intermediate - first);
      const std::byte* const begin = blob + format_.neuron_offset(first);
      const std::byte* const end = blob + format_.neuron_offset(first + count);
      bytes += end - begin;
      if (bytes > kMostBytesPerThread || !FetchBytes(begin, end, stop)) return;
      own.fetched.push_back({expert, first, count});
    }
  }
}

}  // namespace moed::backend
