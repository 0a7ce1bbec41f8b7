// A GPU that hangs, for tests: loaded into a process before its own libraries (LD_PRELOAD), this
// waits for SIGUSR2 and then fills the device with a kernel that never ends, in the CUDA context
// that the process uses. None of the process's own kernels begins any more, whatever its stream.
#include <cuda_runtime.h>
#include <pthread.h>

#include <csignal>
#include <cstdio>
#include <thread>

namespace {

// Divides what a multiprocessor of any generation holds, so that blocks leave no room.
constexpr int kThreads = 256;

__global__ void NeverEnd() {
  while (true) asm volatile("nanosleep.u32 100000;");
}

cudaError_t FillDevice() {
  constexpr int kDevice = 0;
  int multiprocessors = 0;
  int blocks_each = 0;
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaSetDevice(kDevice);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, kDevice);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, NeverEnd, kThreads, 0);
  }
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return error;
  NeverEnd<<<multiprocessors * blocks_each, kThreads, 0, stream>>>();
  return cudaGetLastError();
}

void HangUponSignal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR2);
  int number = 0;
  sigwait(&signals, &number);
  const cudaError_t error = FillDevice();
  std::fprintf(stderr, "device_hang: %s\n",
               error == cudaSuccess ? "the device is full" : cudaGetErrorString(error));
}

// Before main, so that every thread of the process leaves the signal to this one, and this one all
// other signals to them.
__attribute__((constructor)) void WaitForSignal() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread(HangUponSignal).detach();
  sigaddset(&before, SIGUSR2);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace
