// Filling the host store: how fast every expert of a model comes into host memory, in bf16, encoded
// to bf12 while loading, and in bf12 from a converted checkpoint, beside the limit: the smaller of
// what the storage delivers and, where it is encoded, of what all cores encode. Both are measured
// in the same run, in turn, each figure the best of five. Goals: 0.8 of the limit, 0.3 GB/s a core
// of encoding, and no more memory at the peak than the experts and 2 GB.
//   host_load_bench [experts] [threads] [full]    of 2048 x 768, 9.4 MB in bf16; default 128, and
//   0 threads, as many as moed takes
// Cold: the files are dropped from the page cache before; storage is read directly, 16 reads in
// flight, and through the page cache by as many threads as load. With `full` another file then
// takes the memory that is free, as on a host that has read many files. Warm storage is the page
// cache, read into fresh memory. Bytes are those that are read.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/host_memory.h"
#include "runtime/model/bf12_survey.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/convert_checkpoint.h"
#include "runtime/model/for_each_expert.h"
#include "runtime/model/host_experts.h"
#include "runtime/model/recoded_experts.h"
#include "tests/bench/expert_file.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;
constexpr int kRounds = 5;
constexpr size_t kReadBytes = size_t{4} << 20;
constexpr int kDeepQueue = 16;  // reads in flight, as a disk wants

double Seconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<std::string> WeightFiles(const fs::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  return files;
}

void Drop(const fs::path& folder) {
  for (const std::string& name : WeightFiles(folder)) {
    const int file = open(name.c_str(), O_RDONLY);
    fdatasync(file);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
  }
}

// Kilobytes of a line of a file like /proc/self/status.
int64_t Kilobytes(const char* file, const std::string& key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    absl::string_view text = line;
    int64_t kilobytes = 0;
    if (!absl::ConsumePrefix(&text, key + ":") || !absl::ConsumeSuffix(&text, " kB")) continue;
    return absl::SimpleAtoi(text, &kilobytes) ? kilobytes : 0;
  }
  return 0;
}

// A file of nothing but a hole, as large as the memory, whose pages take what is free of it.
class PageCacheFiller {
 public:
  explicit PageCacheFiller(bool fills)
      : bytes_(fills ? Kilobytes(kMemory, "MemTotal") << 10 : 0),
        path_(fs::temp_directory_path() / ("moed_filler_" + std::to_string(getpid()))),
        file_(open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)) {
    ABSL_RAW_CHECK(ftruncate(file_, bytes_) == 0, "cannot make a file");
    unlink(path_.c_str());
    // Small pieces, as of the many files of a build: large ones leave huge pages behind.
    posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);
  }
  ~PageCacheFiller() { close(file_); }
  PageCacheFiller(const PageCacheFiller&) = delete;
  PageCacheFiller& operator=(const PageCacheFiller&) = delete;

  // Until a 40th of the memory is free, about as much as the kernel keeps.
  void Fill() {
    std::vector<std::byte> buffer(16 << 10);
    for (int64_t read = 0; read < bytes_; read += static_cast<int64_t>(buffer.size())) {
      if (read % (16 << 20) == 0 && Kilobytes(kMemory, "MemFree") << 10 < bytes_ / 40) return;
      at_ = (at_ + static_cast<int64_t>(buffer.size())) % bytes_;
      ABSL_RAW_CHECK(pread(file_, buffer.data(), buffer.size(), at_) >= 0, "cannot read");
    }
  }

 private:
  static constexpr char kMemory[] = "/proc/meminfo";
  int64_t bytes_;
  fs::path path_;
  int file_;
  int64_t at_ = 0;
};

enum class Target { kBuffers, kFreshMemory };

// Reads all weights, `threads` pieces at a time, each thread into a buffer of its own, or all into
// memory that was never touched before.
void ReadPlainly(const fs::path& folder, int threads, int flags, Target target) {
  const bool fresh = target == Target::kFreshMemory;
  for (const std::string& name : WeightFiles(folder)) {
    const int file = open(name.c_str(), O_RDONLY | flags);
    const auto bytes = fs::file_size(name);
    const size_t memory_bytes = fresh ? bytes + kReadBytes : threads * kReadBytes;
    const auto memory = *backend::AllocateHostMemory(memory_bytes, "reading plainly");
    std::atomic<uint64_t> next = 0;
    const auto read = [&](int thread) {
      for (uint64_t at = next.fetch_add(kReadBytes); at < bytes; at = next.fetch_add(kReadBytes)) {
        std::byte* const to = memory.data() + (fresh ? at : thread * kReadBytes);
        ABSL_RAW_CHECK(pread(file, to, kReadBytes, static_cast<off_t>(at)) > 0, "cannot read");
      }
    };
    std::vector<std::thread> readers;
    for (int i = 0; i < threads; ++i) readers.emplace_back(read, i);
    for (std::thread& reader : readers) reader.join();
    close(file);
  }
}

// This process's CPU time.
double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// What the peak since Begin took beyond what was there.
class PeakMemory {
 public:
  PeakMemory() {
    std::ofstream("/proc/self/clear_refs") << 5;
    before_ = Kilobytes("/proc/self/status", "VmRSS");
  }
  int64_t bytes() const { return (Kilobytes("/proc/self/status", "VmHWM") - before_) << 10; }

 private:
  int64_t before_;
};

// bf16 bytes a second, all threads together, of experts that lie in memory.
double EncodingRate(const ExpertSource& source, const backend::ExpertFormat& format, int threads) {
  constexpr int kEach = 12;
  const backend::ExpertFormat& plain = source.format();
  std::vector<std::byte> expert(plain.blob_bytes());
  ABSL_RAW_CHECK(source.Read({0, 0}, {}, expert).ok(), "cannot read");
  const auto encode = [&] {
    std::vector<std::thread> encoders;
    for (int i = 0; i < threads; ++i) {
      encoders.emplace_back([&] {
        std::vector<std::byte> blob(format.blob_bytes());
        for (int e = 0; e < kEach; ++e) {
          ABSL_RAW_CHECK(backend::EncodeBf12(plain, expert, format, blob), "cannot encode");
        }
      });
    }
    for (std::thread& encoder : encoders) encoder.join();
  };
  double best = 1e9;
  for (int i = 0; i < kRounds; ++i) best = std::min(best, Seconds(encode));
  return static_cast<double>(threads * kEach * plain.blob_bytes()) / best;
}

// Best seconds. Storage: of the page cache read into fresh memory, or cold by direct reads and by
// plain ones.
struct Times {
  double load = 1e9;
  double cpu = 1e9;  // of all threads, of the load
  double storage = 1e9;
  double plain = 1e9;
};

void Report(const char* name, const Times& times, int64_t bytes, double encoding_rate) {
  const auto rate = [&](double seconds) { return static_cast<double>(bytes) / seconds / 1e9; };
  const auto limit = [&](double storage) {
    return encoding_rate > 0 ? std::min(rate(storage), encoding_rate / 1e9) : rate(storage);
  };
  std::printf("  %s %6.2f GB/s, %.2f CPU seconds a GB; storage %6.2f, of the limit %.2f", name,
              rate(times.load), 1 / rate(times.cpu), rate(times.storage),
              rate(times.load) / limit(times.storage));
  if (times.plain < 1e9) {
    std::printf("; storage through the page cache %6.2f, of the limit %.2f", rate(times.plain),
                rate(times.load) / limit(times.plain));
  }
  std::printf("\n");
}

// A kind of load, in turn with reading the same files. `encoding_rate` of bf16 bytes, or 0.
void Measure(const char* name, const fs::path& folder, const ExpertSource& source, int experts,
             int threads, int64_t read_bytes, double encoding_rate, PageCacheFiller& filler) {
  const auto backend = *backend::CreateCpuBackend({});
  const std::vector<int> experts_per_layer = {experts};
  int64_t peak_bytes = 0;
  const auto load = [&] {
    const PeakMemory peak;
    const auto loaded = HostExperts::Load(source, experts_per_layer, threads, nullptr, *backend);
    ABSL_RAW_CHECK(loaded.ok(), loaded.status().ToString().c_str());
    peak_bytes = std::max(peak_bytes, peak.bytes());
  };
  Times cold, warm;
  const auto take_load = [&](Times* best) {
    const double before = CpuSeconds();
    best->load = std::min(best->load, Seconds(load));
    best->cpu = std::min(best->cpu, CpuSeconds() - before);
  };
  const auto take = [](double* best, const std::function<void()>& run) {
    *best = std::min(*best, Seconds(run));
  };
  const auto make_cold = [&] {
    Drop(folder);
    filler.Fill();
  };
  for (int i = 0; i < kRounds; ++i) {
    make_cold();
    take(&cold.storage, [&] { ReadPlainly(folder, kDeepQueue, O_DIRECT, Target::kBuffers); });
    make_cold();
    take_load(&cold);
    make_cold();
    take(&cold.plain, [&] { ReadPlainly(folder, threads, 0, Target::kBuffers); });
    take(&warm.storage, [&] { ReadPlainly(folder, threads, 0, Target::kFreshMemory); });
    take_load(&warm);
  }
  const auto stored = static_cast<int64_t>(experts * source.format().blob_bytes());
  std::printf("%s: peak memory %.3f GB beyond the experts\n", name,
              static_cast<double>(peak_bytes - stored) / 1e9);
  Report("cold", cold, read_bytes, encoding_rate);
  Report("warm", warm, read_bytes, encoding_rate);
}

std::unique_ptr<Checkpoint> Open(const fs::path& folder) {
  auto checkpoint = OpenCheckpoint({.directory = folder});
  ABSL_RAW_CHECK(checkpoint.ok(), checkpoint.status().ToString().c_str());
  return *std::move(checkpoint);
}

void Run(int experts, int threads, bool full) {
  PageCacheFiller filler(full);
  const ExpertShape shape = {"", 2048, 768, experts};
  const ExpertFile plain(shape);
  const auto checkpoint = Open(plain.path());
  const ExpertSource& source = checkpoint->experts();
  const auto format = *SampleBf12Format(checkpoint->config(), source);
  const int cpus = backend::AvailableCpus();
  const double one_core = EncodingRate(source, format, 1);
  const double all_cores = EncodingRate(source, format, cpus);
  std::printf("encoding: %.2f GB/s a core alone, %.2f on %d cores\n", one_core / 1e9,
              all_cores / 1e9, cpus);
  const int readers = threads > 0 ? threads : std::clamp(cpus, 8, 16);
  const int encoders = threads > 0 ? threads : std::max(2 * cpus, 8);
  Measure("bf16", plain.path(), source, experts, readers, shape.bytes(), 0, filler);
  const EncodedExperts encoded(source, format);
  Measure("bf12, encoded while loading", plain.path(), encoded, experts, encoders, shape.bytes(),
          all_cores, filler);
  const fs::path folder = plain.path() / "bf12";
  const auto converted = ConvertCheckpoint(*checkpoint, {.destination = folder});
  ABSL_RAW_CHECK(converted.ok(), converted.status().ToString().c_str());
  Measure("bf12, converted", folder, Open(folder)->experts(), experts, readers,
          converted->stored_bytes, 0, filler);
}

}  // namespace
}  // namespace moed::model

int main(int argc, char** argv) {
  moed::model::Run(argc > 1 ? std::atoi(argv[1]) : 128, argc > 2 ? std::atoi(argv[2]) : 0,
                   argc > 3 && std::string(argv[3]) == "full");
  return 0;
}
