#include "runtime/backend/cpu/cold_experts.h"

#include <algorithm>

namespace moed::backend {
namespace {

// Half a bf12 tile: small enough that few experts still keep every thread busy to the end.
constexpr int64_t kPieceNeurons = 16;
// A thread takes long runs of pieces first, whose fetches ahead serve itself, and single ones at
// last, so that all end together: each time this part of what is left per thread.
constexpr int64_t kRunsPerThread = 2;
// Columns of a row added by one thread at a time.
constexpr int64_t kSumColumns = 512;

// Those with the most rows a pass: an expert's tokens are few, and its weights come from memory.
const ExpertKernels& FewRowsKernels() {
  const ExpertKernels* kernels = Avx512Bf16ExpertKernels();
  return kernels != nullptr ? *kernels : PortableExpertKernels();
}

}  // namespace

ColdExperts::ColdExperts(ThreadPool& pool, const ExpertFormat& format)
    : pool_(pool), format_(format), kernels_(FewRowsKernels()), has_worked_(pool.num_threads()) {}

ColdExperts::Worker ColdExperts::WorkerAt(int worker) const {
  const int64_t kernel_floats = kernels_.few_rows_limit * format_.row_values();
  float* const first = memory_.get() + worker * worker_floats_;
  return {first, first + kernel_floats, first + 2 * kernel_floats};
}

void ColdExperts::ListPieces(const ColdMailbox& mailbox) {
  pieces_.clear();
  for (int32_t i = 0; i < mailbox.request->num_items; ++i) {
    const ColdItem& item = mailbox.items[i];
    const int64_t end = item.first_neuron + item.num_neurons;
    for (int64_t first = item.first_neuron; first < end;) {
      const int64_t next = std::min((first / kPieceNeurons + 1) * kPieceNeurons, end);
      pieces_.push_back({.item = &item, .first = first, .count = next - first});
      first = next;
    }
  }
}

void ColdExperts::ListRuns() {
  runs_.clear();
  const auto count = static_cast<int64_t>(pieces_.size());
  const int64_t share = kRunsPerThread * pool_.num_threads();
  for (int64_t begin = 0; begin < count;) {
    const int64_t end = begin + std::max<int64_t>((count - begin) / share, 1);
    runs_.push_back({begin, end});
    begin = end;
  }
}

void ColdExperts::Run(const std::byte* experts, const ColdMailbox& mailbox) {
  const int64_t rows = mailbox.request->rows;
  ListPieces(mailbox);
  worker_floats_ = (2 * kernels_.few_rows_limit + rows) * format_.row_values();
  memory_.Reserve(worker_floats_ * pool_.num_threads());
  std::fill(has_worked_.begin(), has_worked_.end(), uint8_t{0});
  ListRuns();
  pool_.ParallelFor(static_cast<int64_t>(runs_.size()), 1,
                    [&](int64_t begin, int64_t end, int worker) {
                      for (int64_t i = runs_[begin].first; i < runs_[end - 1].second; ++i) {
                        RunPiece(experts, mailbox, pieces_[i], worker);
                      }
                    });
  const int64_t chunks = (format_.hidden() + kSumColumns - 1) / kSumColumns;
  pool_.ParallelFor(rows * chunks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % chunks * kSumColumns;
      AddUp(mailbox, i / chunks, column, std::min(kSumColumns, format_.hidden() - column));
    }
  });
}

void ColdExperts::RunPiece(const std::byte* experts, const ColdMailbox& mailbox, const Piece& piece,
                           int worker) {
  const int64_t width = format_.row_values();
  const Worker memory = WorkerAt(worker);
  if (has_worked_[worker] == 0) {
    std::fill_n(memory.sums, mailbox.request->rows * width, 0.0f);
    has_worked_[worker] = 1;
  }
  const ExpertNeurons neurons{format_, experts + piece.item->expert * format_.blob_bytes(),
                              piece.first, piece.count};
  const ColdPair* pairs = mailbox.pairs + piece.item->first_pair;
  for (int left = piece.item->num_pairs; left > 0;) {
    const int num = std::min(left, kernels_.few_rows_limit);
    const BFloat16* x[kMaxFewRows];
    for (int r = 0; r < num; ++r) x[r] = mailbox.x + pairs[r].row * width;
    kernels_.few_rows(
        neurons,
        {.x = x, .num = num, .width = width, .scratch = memory.scratch, .y = memory.output});
    for (int r = 0; r < num; ++r) {
      float* const sums = memory.sums + pairs[r].row * width;
      const float* const output = memory.output + r * width;
      for (int64_t i = 0; i < width; ++i) sums[i] += pairs[r].weight * output[i];
    }
    pairs += num;
    left -= num;
  }
}

void ColdExperts::AddUp(const ColdMailbox& mailbox, int64_t row, int64_t column,
                        int64_t columns) const {
  float* const target = mailbox.sums + row * format_.hidden() + column;
  std::fill_n(target, columns, 0.0f);
  for (int worker = 0; worker < pool_.num_threads(); ++worker) {
    if (has_worked_[worker] == 0) continue;
    const float* const sums = WorkerAt(worker).sums + row * format_.row_values() + column;
    for (int64_t i = 0; i < columns; ++i) target[i] += sums[i];
  }
}

}  // namespace moed::backend
