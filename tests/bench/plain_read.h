// The yardstick of every rate at which the CPU reads memory: a thread that does nothing but read.
// Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moed {

// The sum of `count` words, a multiple of 8. Fetches ahead, as the expert kernels do: without it a
// core reads a third less.
inline uint64_t SumOfWords(const uint64_t* words, size_t count) {
  constexpr size_t kLine = 8;
  constexpr size_t kAhead = 4096;
  uint64_t sum = 0;
  for (size_t line = 0; line + kLine <= count; line += kLine) {
    __builtin_prefetch(words + line + kAhead, 0, 2);
    for (size_t i = 0; i < kLine; ++i) sum += words[line + i];
  }
  return sum;
}

}  // namespace moed
