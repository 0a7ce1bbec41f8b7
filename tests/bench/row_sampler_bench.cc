// Times the sampling of rows on a GPU, upload and launch included, and compares it with the host's
// Sampler on a copy of the rows (without the time of copying them).
//
// usage: row_sampler_bench [vocabulary, default 151936]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/row_sampling.h"
#include "runtime/model/sampler.h"

namespace moed {
namespace {

using backend::RowSampling;
using model::SamplerState;
using model::SamplingParams;

constexpr int kRepeats = 200;

double Microseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - since)
      .count();
}

struct Kind {
  const char* name;
  SamplingParams params;
};

const Kind kKinds[] = {
    {"greedy", {.temperature = 0}},
    {"temperature", {.temperature = 0.7f}},
    {"min-p", {.min_p = 0.05f}},
    {"top-k 20, top-p", {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f}},
    {"top-k 1000", {.top_k = 1000}},
    {"top-k 20000", {.top_k = 20000}},
    {"top-p, small nucleus", {.temperature = 0.3f, .top_p = 0.95f}},
    {"top-p, large nucleus", {.temperature = 2, .top_p = 0.95f}},
    {"greedy, 20 logprobs", {.temperature = 0, .logprobs = 20}},
    {"presence penalty", {.temperature = 0.7f, .presence_penalty = 1}},
};

class Bench {
 public:
  Bench(backend::Backend& backend, int vocab_size, int rows)
      : backend_(backend),
        vocab_size_(vocab_size),
        rows_(rows),
        logits_(size_t(rows) * vocab_size) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (float& logit : logits_) logit = normal(random);
    const std::span<const std::byte> bytes = std::as_bytes(std::span(logits_));
    memory_ = backend.Allocate(bytes.size(), backend::MemoryKind::kDevice, "logits").value();
    if (!backend.CopyFromHost(bytes, memory_.data()).ok()) std::abort();
    sampler_ = backend.CreateRowSampler({.vocab_size = vocab_size, .max_rows = rows}).value();
  }

  void Run(const Kind& kind) {
    std::vector<RowSampling> asked;
    std::vector<backend::LogitAdjustment> adjustments;
    std::vector<SamplerState> states;
    for (int row = 0; row < rows_; ++row) {
      SamplingParams params = kind.params;
      params.seed = static_cast<uint64_t>(row);
      states.emplace_back(params, std::span<const int32_t>());
      for (int token = 0; token < 500; ++token) states.back().Accept(token * 97 % vocab_size_);
      asked.push_back(MakeRowSampling(states.back(), row, &adjustments));
    }
    const backend::Tensor logits(memory_.data(), backend::DType::kF32, {rows_, vocab_size_});
    sampler_->Sample(logits, asked, adjustments);
    if (!backend_.Synchronize().ok()) std::abort();
    const auto one_by_one = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepeats; ++i) {
      sampler_->Sample(logits, asked, adjustments);
      if (!backend_.Synchronize().ok()) std::abort();
    }
    const double with_wait = Microseconds(one_by_one) / kRepeats;
    // What is uploaded is the same each time, so one may overtake another.
    const auto in_a_row = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepeats; ++i) sampler_->Sample(logits, asked, adjustments);
    if (!backend_.Synchronize().ok()) std::abort();
    const double on_device = Microseconds(in_a_row) / kRepeats;
    std::printf("%4d  %-22s %10.1f %12.1f %12.1f\n", rows_, kind.name, on_device, with_wait,
                OnHost(states));
  }

 private:
  double OnHost(const std::vector<SamplerState>& states) {
    model::Sampler sampler(vocab_size_);
    const auto begin = std::chrono::steady_clock::now();
    for (int row = 0; row < rows_; ++row) {
      model::ChunkResult result;
      sampler.Sample(std::span(logits_).subspan(size_t(row) * vocab_size_, vocab_size_),
                     states[row], &result);
    }
    return Microseconds(begin);
  }

  backend::Backend& backend_;
  int vocab_size_;
  int rows_;
  std::vector<float> logits_;
  backend::Buffer memory_;
  std::unique_ptr<backend::RowSampler> sampler_;
};

int Main(int argc, char** argv) {
  const int vocab_size = argc > 1 ? std::atoi(argv[1]) : 151936;
  auto backend = backend::CreateCudaBackend({});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 1;
  }
  std::printf("%d logits a row; microseconds a step\nrows  %-22s %10s %12s %12s\n", vocab_size,
              "options", "GPU", "with waiting", "host");
  for (const int rows : {1, 8, 64}) {
    Bench bench(**backend, vocab_size, rows);
    for (const Kind& kind : kKinds) bench.Run(kind);
  }
  return 0;
}

}  // namespace
}  // namespace moed

int main(int argc, char** argv) { return moed::Main(argc, argv); }
