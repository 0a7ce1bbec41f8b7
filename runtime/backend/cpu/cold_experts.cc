#include "runtime/backend/cpu/cold_experts.h"

#include <algorithm>

#include "runtime/backend/cpu/spin_wait.h"

namespace moed::backend {
namespace {

// Four are what the kernels take at once, and let the threads end within a few microseconds of each
// other; with more, sums stay longer in the L1 cache.
constexpr int64_t kLeastPieceNeurons = 4;
constexpr int64_t kMostPieceNeurons = 16;
// Where there is that much to do.
constexpr int64_t kPiecesPerThread = 24;
// Columns of a row added by one thread at a time.
constexpr int64_t kSumColumns = 128;
static_assert(kSumColumns % kOrderedSums == 0);

// Those with the most rows a pass: an expert's tokens are few, and its weights come from memory.
const ExpertKernels& FewRowsKernels() {
  const ExpertKernels* kernels = Avx512Bf16ExpertKernels();
  return kernels != nullptr ? *kernels : PortableExpertKernels();
}

int64_t PieceNeurons(const ColdMailbox& mailbox, int threads) {
  int64_t neurons = 0;
  for (int32_t i = 0; i < mailbox.request->num_items; ++i) neurons += mailbox.items[i].num_neurons;
  const int64_t size =
      neurons / (threads * kPiecesPerThread) / kLeastPieceNeurons * kLeastPieceNeurons;
  return std::clamp(size, kLeastPieceNeurons, kMostPieceNeurons);
}

int64_t PiecesOf(const ColdItem& item, int64_t neurons) {
  return (item.num_neurons + neurons - 1) / neurons;
}

}  // namespace

// Pieces of a request in the order of its items, from a counter that the threads share.
class ColdExperts::PieceTaker {
 public:
  PieceTaker(const Call& call, std::atomic<int64_t>* next_piece)
      : item_(call.mailbox.items),
        end_(call.mailbox.items + call.mailbox.request->num_items),
        neurons_(call.piece_neurons),
        next_piece_(next_piece) {}

  Piece Take() {
    const int64_t piece = next_piece_->fetch_add(1, std::memory_order_relaxed);
    for (; item_ != end_; item_begin_ += PiecesOf(*item_, neurons_), ++item_) {
      if (piece >= item_begin_ + PiecesOf(*item_, neurons_)) continue;
      const int64_t first = (piece - item_begin_) * neurons_;
      return {.item = item_,
              .first = item_->first_neuron + first,
              .count = std::min<int64_t>(neurons_, item_->num_neurons - first)};
    }
    return {};
  }

 private:
  const ColdItem* item_;
  const ColdItem* end_;
  int64_t neurons_;
  int64_t item_begin_ = 0;  // pieces before item_
  std::atomic<int64_t>* next_piece_;
};

ColdExperts::ColdExperts(ThreadPool& pool, const ExpertFormat& format)
    : pool_(pool), format_(format), kernels_(FewRowsKernels()), has_worked_(pool.num_threads()) {}

ColdExperts::Worker ColdExperts::WorkerAt(int worker) const {
  float* const first = memory_.get() + worker * worker_floats_;
  return {first, first + kernels_.few_rows_limit * format_.row_values()};
}

void ColdExperts::Run(const std::byte* experts, const ColdMailbox& mailbox) {
  const int64_t rows = mailbox.request->rows;
  worker_floats_ = (kernels_.few_rows_limit + rows) * format_.row_values();
  memory_.Reserve(worker_floats_ * pool_.num_threads());
  std::fill(has_worked_.begin(), has_worked_.end(), uint8_t{0});
  for (auto* counter : {&next_piece_, &pieces_done_, &next_sum_}) {
    counter->store(0, std::memory_order_relaxed);
  }
  const Call call = {experts, mailbox, PieceNeurons(mailbox, pool_.num_threads())};
  pool_.ParallelFor(pool_.num_threads(), 1,
                    [&](int64_t, int64_t, int worker) { Run(call, worker); });
}

// Both halves in one loop, since ending one and starting another takes longer than adding up. A
// thread that comes twice, for one that sleeps, finds nothing left to do.
void ColdExperts::Run(const Call& call, int worker) {
  pieces_done_.fetch_add(RunPieces(call, worker), std::memory_order_acq_rel);
  WaitForPieces(call);
  const int64_t chunks = (format_.hidden() + kSumColumns - 1) / kSumColumns;
  const int64_t count = call.mailbox.request->rows * chunks;
  for (int64_t i; (i = next_sum_.fetch_add(1, std::memory_order_relaxed)) < count;) {
    AddUp(call.mailbox, i / chunks, i % chunks * kSumColumns);
  }
}

// Returns how many.
int64_t ColdExperts::RunPieces(const Call& call, int worker) {
  PieceTaker pieces(call, &next_piece_);
  Piece piece = pieces.Take();
  if (piece.item == nullptr) return 0;
  const Worker memory = WorkerAt(worker);
  if (has_worked_[worker] == 0) {
    std::fill_n(memory.sums, call.mailbox.request->rows * format_.row_values(), 0.0f);
    has_worked_[worker] = 1;
  }
  int64_t count = 0;
  for (; piece.item != nullptr; ++count) {
    const Piece next = pieces.Take();
    // After the last, nothing new.
    RunPiece(call, piece, WeightsOf(call, next.item != nullptr ? next : piece), memory);
    piece = next;
  }
  return count;
}

void ColdExperts::WaitForPieces(const Call& call) const {
  int64_t count = 0;
  for (int32_t i = 0; i < call.mailbox.request->num_items; ++i) {
    count += PiecesOf(call.mailbox.items[i], call.piece_neurons);
  }
  SpinWait spin;
  while (pieces_done_.load(std::memory_order_acquire) != count) spin.Pause();
}

const std::byte* ColdExperts::WeightsOf(const Call& call, const Piece& piece) const {
  return call.experts + piece.item->expert * format_.blob_bytes() +
         format_.neuron_offset(piece.first);
}

void ColdExperts::RunPiece(const Call& call, const Piece& piece, const std::byte* next,
                           const Worker& memory) {
  const int64_t width = format_.row_values();
  const ExpertNeurons neurons{format_, call.experts + piece.item->expert * format_.blob_bytes(),
                              piece.first, piece.count, next};
  const ColdPair* pairs = call.mailbox.pairs + piece.item->first_pair;
  for (int left = piece.item->num_pairs; left > 0;) {
    const int num = std::min(left, kernels_.few_rows_limit);
    const BFloat16* x[kMaxFewRows];
    float weights[kMaxFewRows];
    float* y[kMaxFewRows];
    for (int r = 0; r < num; ++r) {
      x[r] = call.mailbox.x + pairs[r].row * width;
      weights[r] = pairs[r].weight;
      y[r] = memory.sums + pairs[r].row * width;
    }
    kernels_.few_rows(neurons, {.x = x,
                                .weights = weights,
                                .num = num,
                                .width = width,
                                .scratch = memory.scratch,
                                .y = y});
    pairs += num;
    left -= num;
  }
}

void ColdExperts::AddUp(const ColdMailbox& mailbox, int64_t row, int64_t column) const {
  alignas(64) float total[kSumColumns] = {};
  const int64_t columns = std::min(kSumColumns, format_.row_values() - column);
  for (int worker = 0; worker < pool_.num_threads(); ++worker) {
    if (has_worked_[worker] == 0) continue;
    const float* const sums = WorkerAt(worker).sums + row * format_.row_values() + column;
    for (int64_t i = 0; i < columns; ++i) total[i] += sums[i];
  }
  kernels_.order_sums(total, columns);
  std::copy_n(total, std::min(columns, format_.hidden() - column),
              mailbox.sums + row * format_.hidden() + column);
}

}  // namespace moed::backend
