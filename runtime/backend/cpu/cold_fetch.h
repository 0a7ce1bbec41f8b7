// Weights of guessed cold experts on their way into the threads' own caches, while the device does
// what lies between two layers' experts and the CPU would wait. A thread that fetched neurons
// computes them, if the next request asks for them. Owned by ColdWorkers.
//
// For each request: Begin by the watching thread, then by each worker ScoreOwn, ScoreOthers once
// all of the request is computed, and Fetch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/cpu/cold_forecast.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

struct FetchedNeurons {
  int32_t expert = 0;
  int32_t first = 0;
  int32_t count = 0;
};

class ColdFetch {
 public:
  // `forecast` must outlive this. `layers`: each layer's experts.
  ColdFetch(ColdForecast& forecast, const ExpertFormat& format,
            std::span<const std::byte* const> layers, int num_threads);

  void Begin(const ColdMailbox& mailbox);
  // What a worker fetched for the request that began, until it fetches more.
  std::span<const FetchedNeurons> FetchedBy(int worker) const;

  // A worker's part of the guess at the next request, by itself.
  void ScoreOwn(int worker);
  // What that reads; null: nothing.
  const std::byte* ScoreWeights(int worker) const;
  // The parts of workers that sleep.
  void ScoreOthers(int worker);
  // Until all parts are done, and the request may change.
  void WaitForScores() const;
  // Share `share` of num_threads, until all of it is on its way or `stop`, which is asked often,
  // says so.
  void Fetch(int share, int worker, absl::FunctionRef<bool()> stop);

 private:
  struct Guess {
    uint64_t number = 0;
    int layer = -1;  // negative: none
  };
  struct alignas(64) Worker {
    std::atomic<uint64_t> scored{0};  // the last guess of which its part was taken
    uint64_t guess = 0;               // of which `fetched` is
    std::vector<FetchedNeurons> fetched;
    std::vector<int32_t> experts;
    std::vector<int32_t> order;
    std::vector<float> x;
  };
  bool AllScored() const;
  int FirstOfPart(int part) const;
  void ScorePart(int part, int worker);

  ColdForecast& forecast_;
  const ExpertFormat format_;
  const std::vector<const std::byte*> layers_;
  std::vector<Worker> workers_;
  Guess guess_;                             // at the request after the one that began
  Guess guess_before_;                      // at the one that began
  int request_layer_ = 0;                   // the one that began
  alignas(64) std::atomic<int> scored_{0};  // parts of the guess
};

}  // namespace moed::backend
