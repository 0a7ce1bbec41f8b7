#include "runtime/backend/cuda/device/step_graphs.h"

namespace moed::backend {

absl::Status StepGraphs::Run(Shape shape, uint64_t memory_moves, absl::FunctionRef<void()> issue,
                             cudaStream_t stream) {
  if (memory_moves != memory_moves_) {
    for (auto& [key, executable] : graphs_) executable = Executable();
    memory_moves_ = memory_moves;
  }
  const auto [entry, first_time] = graphs_.try_emplace(shape);
  if (first_time) {
    issue();
    return absl::OkStatus();
  }
  if (entry->second.get() == nullptr) {
    if (absl::Status status = Record(issue, stream, &entry->second); !status.ok()) return status;
  }
  return CudaStatus(cudaGraphLaunch(entry->second.get(), stream), "launching a recorded step");
}

absl::Status StepGraphs::Record(absl::FunctionRef<void()> issue, cudaStream_t stream,
                                Executable* executable) {
  absl::Status status = CudaStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                                   "recording a step");
  if (!status.ok()) return status;
  issue();
  Graph graph;
  status = CudaStatus(cudaStreamEndCapture(stream, graph.receive()), "recording a step");
  if (!status.ok()) return status;
  return CudaStatus(cudaGraphInstantiate(executable->receive(), graph.get(), 0),
                    "preparing a recorded step");
}

}  // namespace moed::backend
