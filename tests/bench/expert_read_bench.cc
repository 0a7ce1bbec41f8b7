// Paging experts in: reading a checkpoint's experts and laying them out as blobs, against reading
// the same bytes alone into the same slots. The file is in the page cache; one thread; a quarter of
// the experts have slots, so that writes go to memory.
//   expert_read_bench [--benchmark_filter=Qwen3]
// Counters: bytes_per_second of weights, and of_pread, this rate over that of pread alone.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "runtime/backend/host_memory.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/input_file.h"

namespace moed::model {
namespace {

struct Shape {
  const char* name;
  int64_t hidden;
  int64_t intermediate;
  int experts;
};

constexpr Shape kShapes[] = {
    {"Qwen3-30B-A3B", 2048, 768, 128},
    {"OLMoE-1B-7B", 2048, 1024, 96},
    {"Mixtral-8x7B", 4096, 14336, 3},
};

// A folder with one layer of experts in bf16, deleted at the end.
class ExpertFile {
 public:
  explicit ExpertFile(const Shape& shape)
      : path_(std::filesystem::temp_directory_path() /
              absl::StrCat("moed_expert_read_bench_", getpid())) {
    std::filesystem::create_directories(path_);
    WriteConfig(shape);
    WriteTensors(shape);
  }
  ~ExpertFile() { std::filesystem::remove_all(path_); }

  const std::filesystem::path& path() const { return path_; }

 private:
  void WriteConfig(const Shape& shape) const {
    std::ofstream(path_ / "config.json") << absl::StrFormat(
        R"({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": %d, "vocab_size": 1,
            "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2,
            "max_position_embeddings": 16, "num_experts": %d, "num_experts_per_tok": 1,
            "moe_intermediate_size": %d, "tie_word_embeddings": true})",
        shape.hidden, shape.experts, shape.intermediate);
  }

  void WriteTensors(const Shape& shape) const {
    std::string header;
    int64_t offset = 0;
    const auto add = [&](const std::string& name, const std::string& dims, int64_t values) {
      absl::StrAppend(&header, header.empty() ? "{" : ",", "\"model.", name,
                      R"(":{"dtype":"BF16","shape":)", dims, R"(,"data_offsets":[)", offset, ",",
                      offset + 2 * values, "]}");
      offset += 2 * values;
    };
    const int64_t h = shape.hidden;
    const std::string row = absl::StrCat("[", h, "]");
    add("embed_tokens.weight", absl::StrCat("[1,", h, "]"), h);
    add("norm.weight", row, h);
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
      add(absl::StrCat("layers.0.", norm, ".weight"), row, h);
    }
    for (const char* projection : {"q", "k", "v"}) {
      add(absl::StrCat("layers.0.self_attn.", projection, "_proj.weight"),
          absl::StrCat("[2,", h, "]"), 2 * h);
    }
    add("layers.0.self_attn.o_proj.weight", absl::StrCat("[", h, ",2]"), 2 * h);
    for (const char* norm : {"q", "k"}) {
      add(absl::StrCat("layers.0.self_attn.", norm, "_norm.weight"), "[2]", 2);
    }
    add("layers.0.mlp.gate.weight", absl::StrCat("[", shape.experts, ",", h, "]"),
        shape.experts * h);
    const int64_t i = shape.intermediate;
    for (int expert = 0; expert < shape.experts; ++expert) {
      for (const char* part : {"gate", "up", "down"}) {
        const bool is_down = part[0] == 'd';
        add(absl::StrCat("layers.0.mlp.experts.", expert, ".", part, "_proj.weight"),
            absl::StrCat("[", is_down ? h : i, ",", is_down ? i : h, "]"), h * i);
      }
    }
    header += "}";
    std::ofstream file(path_ / "model.safetensors", std::ios::binary);
    const uint64_t header_bytes = header.size();
    file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
    file << header;
    const std::vector<char> block(1 << 20, 0x3c);
    for (int64_t written = 0; written < offset; written += static_cast<int64_t>(block.size())) {
      file.write(block.data(), std::min<int64_t>(block.size(), offset - written));
    }
  }

  std::filesystem::path path_;
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

void ReadExperts(benchmark::State& state, const Shape& shape) {
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
