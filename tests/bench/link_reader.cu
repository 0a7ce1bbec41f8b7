#include "tests/bench/link_reader.h"

#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "tests/bench/device_check.cuh"
#include "tests/bench/read_all.cuh"

namespace moed {
namespace {

// More than the CPU's caches hold.
constexpr size_t kBytes = size_t{1} << 30;
// Of one launch, a millisecond and a half: the thread that launches takes a CPU so often.
constexpr size_t kLaunchBytes = size_t{64} << 20;

using Clock = std::chrono::steady_clock;

}  // namespace

struct LinkReader::State {
  void Read() {
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreate(&stream));
    cudaEvent_t done[2];
    // A thread that waits sleeps: the CPUs are the workers'.
    for (cudaEvent_t& event : done) {
      CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventBlockingSync | cudaEventDisableTiming));
    }
    size_t at = 0;
    for (int64_t launch = 0; !stopping; ++launch) {
      if (launch >= 2) {
        CUDA_CHECK(cudaEventSynchronize(done[launch % 2]));
        bytes_read += kLaunchBytes;
      }
      ReadAll<<<132 * 4, 512, 0, stream>>>(reinterpret_cast<const uint4*>(memory + at),
                                           kLaunchBytes / sizeof(uint4), nullptr);
      CUDA_CHECK(cudaEventRecord(done[launch % 2], stream));
      at = (at + kLaunchBytes) % kBytes;
    }
    CUDA_CHECK(cudaStreamSynchronize(stream));
    for (cudaEvent_t event : done) cudaEventDestroy(event);
    cudaStreamDestroy(stream);
  }

  std::byte* memory = nullptr;
  std::atomic<bool> stopping{false};
  std::atomic<size_t> bytes_read{0};
  size_t bytes_reported = 0;
  Clock::time_point reported = Clock::now();
  std::thread thread;
};

LinkReader::LinkReader() : state_(std::make_unique<State>()) {
  CUDA_CHECK(cudaHostAlloc(&state_->memory, kBytes, cudaHostAllocMapped));
  state_->thread = std::thread([this] { state_->Read(); });
}

LinkReader::~LinkReader() {
  state_->stopping = true;
  state_->thread.join();
  cudaFreeHost(state_->memory);
}

double LinkReader::Rate() {
  const auto now = Clock::now();
  const size_t bytes = state_->bytes_read;
  const double seconds = std::chrono::duration<double>(now - state_->reported).count();
  const double rate = static_cast<double>(bytes - state_->bytes_reported) / seconds;
  state_->reported = now;
  state_->bytes_reported = bytes;
  return rate;
}

}  // namespace moed
