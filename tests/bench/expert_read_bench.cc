// Paging experts in: reading a checkpoint's experts and laying them out as blobs, against reading
// the same bytes alone into the same slots. The file is in the page cache; one thread; a quarter of
// the experts have slots, so that writes go to memory.
//   expert_read_bench [--benchmark_filter=Qwen3]
// Counters: bytes_per_second of weights, and of_pread, this rate over that of pread alone.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "runtime/backend/host_memory.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/input_file.h"
#include "tests/bench/expert_file.h"

namespace moed::model {
namespace {

constexpr ExpertShape kShapes[] = {
    {"Qwen3-30B-A3B", 2048, 768, 128},
    {"OLMoE-1B-7B", 2048, 1024, 96},
    {"Mixtral-8x7B", 4096, 14336, 3},
};

// This thread's CPU time: from the page cache nothing waits, and other processes do not count.
double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Seconds to read the last `bytes` of the file into the slots, one expert after another.
double SecondsOfPread(const InputFile& file, int64_t bytes, std::span<std::byte> arena) {
  const double start = ThreadSeconds();
  for (int64_t offset = 0; offset < bytes; offset += static_cast<int64_t>(arena.size())) {
    const size_t count = std::min<size_t>(arena.size(), bytes - offset);
    if (!file.ReadAt(file.bytes() - bytes + offset, arena.first(count)).ok()) return 0;
  }
  return ThreadSeconds() - start;
}

void ReadExperts(benchmark::State& state, const ExpertShape& shape) {
  const ExpertFile files(shape);
  const auto checkpoint = OpenCheckpoint({.directory = files.path()});
  if (!checkpoint.ok()) return state.SkipWithError(checkpoint.status().ToString().c_str());
  const ExpertSource& source = (*checkpoint)->experts();
  const size_t blob_bytes = source.format().blob_bytes();
  const int slots = std::max(shape.experts / 4, 1);
  auto arena = backend::AllocateHostMemory(slots * blob_bytes, "slots");
  if (!arena.ok()) return state.SkipWithError(arena.status().ToString().c_str());
  const auto file = InputFile::Open(files.path() / "model.safetensors", "experts");
  const int64_t bytes = 6 * shape.hidden * shape.intermediate * shape.experts;
  const auto read_all = [&] {
    for (int expert = 0; expert < shape.experts; ++expert) {
      const auto blob = std::span(arena->data() + expert % slots * blob_bytes, blob_bytes);
      if (!source.Read({0, expert}, {}, blob).ok()) return false;
    }
    return true;
  };
  if (!read_all()) return state.SkipWithError("cannot read");
  double pread_seconds = 0;
  double read_seconds = 0;
  for (auto _ : state) {
    state.PauseTiming();
    pread_seconds += SecondsOfPread(*file, bytes, std::span(arena->data(), arena->bytes()));
    state.ResumeTiming();
    const double start = ThreadSeconds();
    if (!read_all()) return state.SkipWithError("cannot read");
    read_seconds += ThreadSeconds() - start;
  }
  state.SetBytesProcessed(state.iterations() * bytes);
  state.counters["of_pread"] = pread_seconds / read_seconds;
}

void ReadDummyExperts(benchmark::State& state) {
  const ExpertFile files(kShapes[0]);
  const auto checkpoint =
      OpenCheckpoint({.directory = files.path(), .load_format = LoadFormat::kDummy});
  if (!checkpoint.ok()) return state.SkipWithError(checkpoint.status().ToString().c_str());
  const ExpertSource& source = (*checkpoint)->experts();
  std::vector<std::byte> blob(source.format().blob_bytes());
  int expert = 0;
  for (auto _ : state) {
    if (!source.Read({0, expert++ % kShapes[0].experts}, {}, blob).ok()) return;
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(blob.size()));
}
BENCHMARK(ReadDummyExperts);

}  // namespace
}  // namespace moed::model

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const auto& shape : moed::model::kShapes) {
    benchmark::RegisterBenchmark(absl::StrCat("ReadExperts/", shape.name).c_str(),
                                 moed::model::ReadExperts, shape)
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
