#include "tests/bench/memory_rates.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "tests/bench/plain_read.h"
#include "tests/bench/read_all.cuh"

namespace moed {
namespace {

constexpr size_t kBytes = size_t{2} << 30;
constexpr double kSecondsOfBoth = 0.5;

void LaunchReadAll(const std::byte* data, size_t bytes) {
  ReadAll<<<132 * 8, 512>>>(reinterpret_cast<const uint4*>(data), bytes / sizeof(uint4), nullptr);
}

// Of the best of several passes.
double ReadRate(const std::byte* data, size_t bytes) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float best = 1e9f;
  for (int pass = 0; pass < 4; ++pass) {
    cudaEventRecord(begin);
    LaunchReadAll(data, bytes);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms;
    cudaEventElapsedTime(&ms, begin, end);
    best = std::min(best, ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return static_cast<double>(bytes) / best * 1e3;
}

// Reads over and over until `stop`.
void ReadUntil(const std::atomic<bool>& stop, const std::byte* data, size_t bytes,
               std::atomic<int64_t>& bytes_read) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum = 0;
  while (!stop) {
    sum += SumOfWords(words, bytes / sizeof(uint64_t));
    bytes_read += static_cast<int64_t>(bytes);
  }
  volatile uint64_t sink = sum;
  (void)sink;
}

// `threads` read the first half of `host`, the device the second.
double RateOfBoth(const backend::Buffer& host, int threads) {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> cpu_bytes{0};
  std::vector<std::thread> readers;
  const size_t half = host.bytes() / 2;
  const size_t part = half / threads / 4096 * 4096;
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&, i] { ReadUntil(stop, host.data() + i * part, part, cpu_bytes); });
  }
  const auto start = std::chrono::steady_clock::now();
  double link_bytes = 0;
  double seconds = 0;
  while (seconds < kSecondsOfBoth) {
    LaunchReadAll(host.data() + half, half);
    cudaDeviceSynchronize();
    link_bytes += static_cast<double>(half);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  return (link_bytes + static_cast<double>(cpu_bytes)) / seconds;
}

backend::Buffer Take(backend::Backend& backend, backend::MemoryKind kind) {
  auto buffer = backend.Allocate(kBytes, kind, "measuring rates");
  ABSL_RAW_CHECK(buffer.ok(), buffer.status().ToString().c_str());
  return *std::move(buffer);
}

}  // namespace

MemoryRates MeasureMemoryRates(backend::Backend& backend) {
  const backend::Buffer vram = Take(backend, backend::MemoryKind::kDevice);
  const backend::Buffer host = Take(backend, backend::MemoryKind::kHost);
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) - 2);
  MemoryRates rates;
  rates.vram = ReadRate(vram.data(), kBytes);
  rates.link = ReadRate(host.data(), kBytes / 4);
  rates.both = RateOfBoth(host, threads);
  std::printf(
      "VRAM read %.0f GB/s, host memory over the link %.1f GB/s, by link and %d threads at "
      "once %.1f GB/s\n",
      rates.vram / 1e9, rates.link / 1e9, threads, rates.both / 1e9);
  return rates;
}

}  // namespace moed
