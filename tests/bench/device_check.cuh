// How benchmarks on a GPU take its errors: with a message, and the end.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace moed {

inline void ExitUnlessSuccess(cudaError_t error, const char* what, const char* file, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, cudaGetErrorString(error));
  std::exit(1);
}

}  // namespace moed

#define CUDA_CHECK(call) moed::ExitUnlessSuccess((call), #call, __FILE__, __LINE__)
