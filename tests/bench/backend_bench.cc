// How far the CPU backend's ops are from what the machine gives. Every figure is a ratio to a
// yardstick measured in turns with the op; the best turn of each counts, so that a busy machine
// does not hide it:
//   of_read   rate of weight or KV bytes, over a plain read of the same bytes by the same threads
//   of_onednn rate of a product, over oneDNN's on a warm row-major product of the same shape
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "runtime/backend/cpu/attention.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/linear.h"

namespace moed::backend {
namespace {

double SecondsOf(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The best turn of an op and of its yardstick.
class Turns {
 public:
  void Take(benchmark::State& state, const std::function<void()>& op,
            const std::function<void()>& yardstick) {
    const double seconds = SecondsOf(op);
    state.SetIterationTime(seconds);
    seconds_ = std::min(seconds_, seconds);
    yardstick_seconds_ = std::min(yardstick_seconds_, SecondsOf(yardstick));
  }
  double seconds() const { return seconds_; }
  double yardstick_seconds() const { return yardstick_seconds_; }
  double ratio() const { return yardstick_seconds_ / seconds_; }

 private:
  double seconds_ = std::numeric_limits<double>::infinity();
  double yardstick_seconds_ = std::numeric_limits<double>::infinity();
};

ThreadPool& Pool() {
  static ThreadPool pool(AvailableCpus());
  return pool;
}

std::vector<BFloat16> SmallValues(int64_t count) {
  std::vector<BFloat16> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = ToBFloat16(static_cast<float>(i * 7919 % 31 - 15) / 16);
  }
  return values;
}

// Reads every byte once, on all threads.
void PlainRead(const std::vector<std::span<const std::byte>>& pieces) {
  std::vector<uint64_t> sums(Pool().num_threads() * 8);
  for (std::span<const std::byte> piece : pieces) {
    constexpr int64_t kBlock = 256 * 1024;
    Pool().ParallelFor(piece.size() / kBlock, 1, [&](int64_t begin, int64_t end, int worker) {
      uint64_t lanes[8] = {};
      for (int64_t at = begin * kBlock; at < end * kBlock; at += sizeof(lanes)) {
        uint64_t words[8];
        std::memcpy(words, piece.data() + at, sizeof(words));
        for (int i = 0; i < 8; ++i) lanes[i] += words[i];
      }
      sums[worker * 8] += std::accumulate(std::begin(lanes), std::end(lanes), uint64_t{0});
    });
  }
  benchmark::DoNotOptimize(sums.data());
}

// Args: tokens. Sixteen weights in turn, so that none is still in a cache.
void BM_LinearReadsWeights(benchmark::State& state) {
  constexpr int64_t kWidth = 2048;
  constexpr int kWeights = 16;
  const int64_t tokens = state.range(0);
  std::vector<std::unique_ptr<PackedWeight>> weights;
  std::vector<std::span<const std::byte>> pieces;
  std::vector<BFloat16> values = SmallValues(kWidth * kWidth);
  for (int i = 0; i < kWeights; ++i) {
    weights.push_back(
        PackedWeight::Pack(Pool(), Tensor(values.data(), DType::kBF16, {kWidth, kWidth}), Tensor())
            .value());
    pieces.emplace_back(reinterpret_cast<const std::byte*>(weights.back()->panel(0)),
                        kWidth * kWidth * sizeof(BFloat16));
  }
  std::vector<BFloat16> x = SmallValues(tokens * kWidth);
  std::vector<float> y(tokens * kWidth);
  DenseProduct linear(Pool());
  auto multiply = [&] {
    for (const auto& weight : weights) {
      linear.Run(*weight, Tensor(x.data(), DType::kBF16, {tokens, kWidth}),
                 Tensor(y.data(), DType::kF32, {tokens, kWidth}), false);
    }
  };
  Turns turns;
  for (auto _ : state) turns.Take(state, multiply, [&] { PlainRead(pieces); });
  state.counters["GB/s"] = kWeights * kWidth * kWidth * 2 / turns.seconds() / 1e9;
  state.counters["of_read"] = turns.ratio();
}
BENCHMARK(BM_LinearReadsWeights)
    ->Arg(1)
    ->Arg(2)
    ->Arg(3)
    ->Arg(4)
    ->Arg(5)
    ->Arg(8)
    ->Arg(16)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(1.0);

// oneDNN's y = x W^T on row-major memory of one type.
class OneDnnProduct {
 public:
  OneDnnProduct(dnnl::memory::data_type type, int64_t tokens, int64_t in, int64_t out)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    const memory::desc x({tokens, in}, type, memory::format_tag::ab);
    const memory::desc w({in, out}, type, memory::format_tag::ba);
    const memory::desc y({tokens, out}, memory::data_type::f32, memory::format_tag::ab);
    matmul_ = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, w, y), engine_));
    arguments_ = {{DNNL_ARG_SRC, memory(x, engine_)},
                  {DNNL_ARG_WEIGHTS, memory(w, engine_)},
                  {DNNL_ARG_DST, memory(y, engine_)}};
    for (auto& [index, memory] : arguments_) {
      std::memset(memory.get_data_handle(), 0, memory.get_desc().get_size());
    }
  }
  void Run() {
    matmul_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// Args: tokens, in, out, and whether oneDNN's yardstick is bf16 (else float32).
void BM_LinearMultiplies(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const int64_t in = state.range(1);
  const int64_t out = state.range(2);
  const auto type =
      state.range(3) != 0 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  std::unique_ptr<OneDnnProduct> yardstick;
  try {
    yardstick = std::make_unique<OneDnnProduct>(type, tokens, in, out);
  } catch (const dnnl::error&) {
    state.SkipWithError("oneDNN has no product of this type for this CPU");
    return;
  }
  std::vector<BFloat16> values = SmallValues(out * in);
  const auto weight =
      PackedWeight::Pack(Pool(), Tensor(values.data(), DType::kBF16, {out, in}), Tensor()).value();
  std::vector<BFloat16> x = SmallValues(tokens * in);
  std::vector<float> y(tokens * out);
  DenseProduct linear(Pool());
  auto multiply = [&] {
    linear.Run(*weight, Tensor(x.data(), DType::kBF16, {tokens, in}),
               Tensor(y.data(), DType::kF32, {tokens, out}), false);
  };
  Turns turns;
  for (auto _ : state) turns.Take(state, multiply, [&] { yardstick->Run(); });
  const double operations = 2.0 * static_cast<double>(tokens * in * out);
  state.counters["GFLOP/s"] = operations / turns.seconds() / 1e9;
  state.counters["onednn GFLOP/s"] = operations / turns.yardstick_seconds() / 1e9;
  state.counters["of_onednn"] = turns.ratio();
}
BENCHMARK(BM_LinearMultiplies)
    ->ArgNames({"tokens", "in", "out", "bf16"})
    ->Args({512, 2048, 2048, 0})
    ->Args({512, 2048, 2048, 1})
    ->Args({64, 2048, 2048, 0})
    ->Args({512, 8192, 2048, 0})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(1.0);

// One sequence's step over one layer. Args: new tokens, context before them, query heads, KV heads.
void BM_Attention(benchmark::State& state) {
  constexpr int kBlockTokens = 16;
  const auto tokens = static_cast<int>(state.range(0));
  const auto context = static_cast<int>(state.range(1));
  const AttentionSpec spec = {.query_heads = static_cast<int>(state.range(2)),
                              .kv_heads = static_cast<int>(state.range(3)),
                              .head_dim = 128,
                              .scale = 1.0f / std::sqrt(128.0f)};
  const int64_t blocks = (context + tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t width = int64_t{spec.kv_heads} * spec.head_dim;
  const int64_t q_width = int64_t{spec.query_heads} * spec.head_dim;
  std::vector<BFloat16> keys = SmallValues(blocks * kBlockTokens * width);
  std::vector<BFloat16> values = keys;
  std::vector<float> q(tokens * q_width, 0.5f);
  std::vector<BFloat16> out(tokens * q_width);
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  const AttentionSegment segment = {
      .num_tokens = tokens, .context_start = context, .kv_blocks = table};
  const KvLayer cache = {Tensor(keys.data(), DType::kBF16, {blocks, kBlockTokens, width}),
                         Tensor(values.data(), DType::kBF16, {blocks, kBlockTokens, width}),
                         kBlockTokens};
  PagedAttention attention(Pool());
  auto attend = [&] {
    attention.Run(spec, {&segment, 1}, Tensor(q.data(), DType::kF32, {tokens, q_width}), cache,
                  Tensor(out.data(), DType::kBF16, {tokens, q_width}));
  };
  auto read = [&] {
    PlainRead({std::as_bytes(std::span(keys)), std::as_bytes(std::span(values))});
  };
  Turns turns;
  for (auto _ : state) turns.Take(state, attend, read);
  const double pairs = static_cast<double>(tokens) * (context + (tokens + 1) / 2.0);
  state.counters["GFLOP/s"] = 4 * pairs * static_cast<double>(q_width) / turns.seconds() / 1e9;
  state.counters["of_read"] = turns.ratio();
}
BENCHMARK(BM_Attention)
    ->ArgNames({"tokens", "context", "hq", "hkv"})
    ->Args({1, 4096, 16, 16})
    ->Args({1, 4096, 32, 4})
    ->Args({1, 32768, 32, 4})
    ->Args({512, 0, 16, 16})
    ->Args({512, 4096, 32, 4})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(0.5);

}  // namespace
}  // namespace moed::backend

BENCHMARK_MAIN();
