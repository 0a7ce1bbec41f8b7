// The Experts op in the shape of OLMoE-1B-7B (H 2048, I 1024, top-8). Every figure is a ratio to a
// yardstick measured in turns with the op; the best turn of each counts, so that a busy machine
// does not hide it:
//   of_read   rate of weight bytes, over a plain read of the same bytes by the same threads
//   of_peak   arithmetic, over independent float32 multiply-adds on all threads
//   of_onednn arithmetic, over oneDNN's float32 product of as many rows by a 2048 x 2048 weight
//   of_bf16   speed with bf12 weights, over the same experts in bf16
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/experts.h"

namespace moed::backend {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kIntermediate = 1024;
constexpr int kTopK = 8;
constexpr int kNumExperts = 64;  // 805 MB: more than any cache

double SecondsOf(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The best turns of an op and of its yardsticks.
struct Turn {
  std::function<void()> run;
  double best_seconds = std::numeric_limits<double>::infinity();

  double Take() {
    const double seconds = SecondsOf(run);
    best_seconds = std::min(best_seconds, seconds);
    return seconds;
  }
};

ThreadPool& Pool() {
  static ThreadPool pool(AvailableCpus());
  return pool;
}

const ExpertFormat& Format() {
  static const ExpertFormat format(ExpertFormatKind::kBF16, kHidden, kIntermediate);
  return format;
}

const ExpertFormat& Bf12Format() {
  static const ExpertFormat format(ExpertFormatKind::kBF12, kHidden, kIntermediate,
                                   Bf12TileEscapeCapacity(0));
  return format;
}

// All experts in bf16, one after another, with normal weights.
std::byte* Bf16Blobs() {
  static std::byte* const blobs = [] {
    std::vector<BFloat16> normal(1 << 16);
    std::mt19937 random(1);
    std::normal_distribution<float> distribution(0.0f, 0.02f);
    for (BFloat16& value : normal) value = ToBFloat16(distribution(random));
    const size_t count = kNumExperts * Format().blob_bytes() / sizeof(BFloat16);
    static Scratch<BFloat16> memory;
    BFloat16* const values = memory.Reserve(count);
    Pool().ParallelFor(count, 1 << 20, [&](int64_t begin, int64_t end, int) {
      std::minstd_rand chunk_random(begin + 1);
      for (int64_t i = begin; i < end; ++i) values[i] = normal[chunk_random() % normal.size()];
    });
    return reinterpret_cast<std::byte*>(values);
  }();
  return blobs;
}

bool EncodeExpert(int e, std::byte* bf12_blobs) {
  const size_t size = Format().blob_bytes();
  const size_t bf12_size = Bf12Format().blob_bytes();
  return EncodeBf12(Format(), {Bf16Blobs() + e * size, size}, Bf12Format(),
                    {bf12_blobs + e * bf12_size, bf12_size});
}

std::byte* Bf12Blobs() {
  static std::byte* const blobs = [] {
    static Scratch<std::byte> memory;
    Bf16Blobs();  // in the pool they would wait for it
    std::byte* const all = memory.Reserve(kNumExperts * Bf12Format().blob_bytes());
    Pool().ParallelFor(kNumExperts, 1, [&](int64_t begin, int64_t, int) {
      if (!EncodeExpert(static_cast<int>(begin), all)) std::abort();
    });
    return all;
  }();
  return blobs;
}

void ReadPlainly(const std::byte* data, size_t bytes) {
  constexpr int64_t kChunk = 1 << 18;
  Pool().ParallelFor(bytes, kChunk, [&](int64_t begin, int64_t end, int) {
    using Words = uint64_t __attribute__((vector_size(64), aligned(1), may_alias));
    Words sum = {};
    for (int64_t i = begin; i + 64 <= end; i += 64) {
      sum ^= *reinterpret_cast<const Words*>(data + i);
    }
    benchmark::DoNotOptimize(sum);
  });
}

__attribute__((target("avx2,fma"))) void MultiplyAdd(int64_t count) {
  using Floats = float __attribute__((vector_size(32)));
  Floats sums[12] = {};
  const Floats factor = Floats{} + 0.999f;
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 12
    for (Floats& sum : sums) sum = sum * factor + factor;
  }
  for (Floats& sum : sums) benchmark::DoNotOptimize(sum);
}

// On each thread; returns the floating-point operations in all.
double RunMultiplyAdds() {
  constexpr int64_t kCount = 1 << 20;
  const int threads = Pool().num_threads();
  Pool().ParallelFor(threads, 1, [](int64_t, int64_t, int) { MultiplyAdd(kCount); });
  return static_cast<double>(threads) * kCount * 12 * 8 * 2;
}

// A warm float32 product [rows, 2048] x [2048, 2048] with the weight as oneDNN likes it.
class OneDnnProduct {
 public:
  explicit OneDnnProduct(int64_t rows) : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using Tag = dnnl::memory::format_tag;
    const auto describe = [](dnnl::memory::dims dims, Tag tag) {
      return dnnl::memory::desc(dims, dnnl::memory::data_type::f32, tag);
    };
    const dnnl::matmul::primitive_desc primitive(
        dnnl::matmul::desc(describe({rows, kHidden}, Tag::ab),
                           describe({kHidden, kHidden}, Tag::any),
                           describe({rows, kHidden}, Tag::ab)),
        engine_);
    product_ = dnnl::matmul(primitive);
    arguments_ = {{DNNL_ARG_SRC, dnnl::memory(primitive.src_desc(), engine_)},
                  {DNNL_ARG_WEIGHTS, dnnl::memory(primitive.weights_desc(), engine_)},
                  {DNNL_ARG_DST, dnnl::memory(primitive.dst_desc(), engine_)}};
    for (auto& [index, memory] : arguments_) {
      std::memset(memory.get_data_handle(), 0, memory.get_desc().get_size());
    }
  }

  void Run() {
    product_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul product_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// One call of the op: `rows` rows for each of `experts` experts, other experts every time.
class Call {
 public:
  Call(const ExpertFormat& format, const std::byte* blobs, int experts, int64_t rows)
      : format_(format),
        blobs_(blobs),
        op_(Pool()),
        x_values_(rows * experts * kHidden, 0x3c00),
        out_values_(rows * experts * kHidden),
        row_ids_(rows * experts),
        work_(experts) {
    std::iota(row_ids_.begin(), row_ids_.end(), 0);
    for (int e = 0; e < experts; ++e) work_[e].rows = std::span(row_ids_).subspan(e * rows, rows);
  }

  void Run() {
    for (ExpertWork& item : work_) {
      item.blob = blobs_ + next_ * format_.blob_bytes();
      next_ = (next_ + 1) % kNumExperts;
    }
    const auto rows = static_cast<int64_t>(row_ids_.size());
    op_.Run(format_, work_, 1, Tensor(x_values_.data(), DType::kBF16, {rows, kHidden}),
            Tensor(out_values_.data(), DType::kF32, {rows, kHidden}));
  }

 private:
  const ExpertFormat& format_;
  const std::byte* blobs_;
  ExpertsOp op_;
  std::vector<BFloat16> x_values_;
  std::vector<float> out_values_;
  std::vector<int32_t> row_ids_;
  std::vector<ExpertWork> work_;
  int64_t next_ = 0;
};

// Top-8 experts with a few rows each: a decode step's layer.
void BM_FewRows(benchmark::State& state) {
  Call call(Format(), Bf16Blobs(), kTopK, state.range(0));
  const size_t bytes = kTopK * Format().blob_bytes();
  size_t offset = 0;
  Turn op{[&] { call.Run(); }};
  Turn read{[&] {
    ReadPlainly(Bf16Blobs() + offset, bytes);
    offset = (offset + bytes) % (kNumExperts * Format().blob_bytes());
  }};
  for (auto _ : state) {
    state.SetIterationTime(op.Take());
    read.Take();
  }
  state.counters["GB/s"] = bytes / op.best_seconds / 1e9;
  state.counters["of_read"] = read.best_seconds / op.best_seconds;
}
BENCHMARK(BM_FewRows)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->UseManualTime()->MinTime(2);

// Two experts with many rows each: prefill.
void BM_ManyRows(benchmark::State& state) {
  constexpr int kExperts = 2;
  const int64_t rows = state.range(0);
  Call call(Format(), Bf16Blobs(), kExperts, rows);
  OneDnnProduct product(rows);
  Turn op{[&] { call.Run(); }};
  Turn onednn{[&] { product.Run(); }};
  double peak_operations = 0;
  Turn peak{[&] { peak_operations = RunMultiplyAdds(); }};
  for (auto _ : state) {
    state.SetIterationTime(op.Take());
    onednn.Take();
    peak.Take();
  }
  const double rate = 2.0 * 3 * kExperts * rows * kHidden * kIntermediate / op.best_seconds;
  state.counters["GFLOP/s"] = rate / 1e9;
  state.counters["of_peak"] = rate / (peak_operations / peak.best_seconds);
  state.counters["of_onednn"] = rate / (2.0 * rows * kHidden * kHidden / onednn.best_seconds);
}
BENCHMARK(BM_ManyRows)->Arg(16)->Arg(64)->Arg(256)->Arg(1024)->UseManualTime()->MinTime(2);

void BM_Bf12(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int experts = rows <= 8 ? kTopK : 2;
  Call bf12(Bf12Format(), Bf12Blobs(), experts, rows);
  Call bf16(Format(), Bf16Blobs(), experts, rows);
  Turn bf12_turn{[&] { bf12.Run(); }};
  Turn bf16_turn{[&] { bf16.Run(); }};
  for (auto _ : state) {
    state.SetIterationTime(bf12_turn.Take());
    bf16_turn.Take();
  }
  state.counters["stored_GB/s"] =
      experts * Bf12Format().blob_bytes() / bf12_turn.best_seconds / 1e9;
  state.counters["of_bf16"] = bf16_turn.best_seconds / bf12_turn.best_seconds;
}
BENCHMARK(BM_Bf12)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(64)->Arg(256)->UseManualTime()->MinTime(2);

// One core; bytes of bf16.
void BM_EncodeBf12(benchmark::State& state) {
  std::byte* const blobs = Bf12Blobs();
  int e = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(EncodeExpert(e, blobs));
    e = (e + 1) % kNumExperts;
  }
  state.SetBytesProcessed(state.iterations() * Format().blob_bytes());
}
BENCHMARK(BM_EncodeBf12)->MinTime(1);

}  // namespace
}  // namespace moed::backend

BENCHMARK_MAIN();
