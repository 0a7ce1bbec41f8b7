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
// Of pieces in tiles, whose threads end less closely together but compute in less time; and the
// bytes of one, since a thread's and the next lie in its L2 cache.
constexpr int64_t kTilePiecesPerThread = 10;
constexpr int64_t kMostTilePieceBytes = 400 << 10;
constexpr int64_t kMostTilePieceNeurons = 2 * kAmxTileNeurons;
// Columns of a row added by one thread at a time, at most.
constexpr int64_t kMostSumColumns = 256;
static_assert(kMostSumColumns % kOrderedSums == 0);

// In tiles; 0: the request is too small, or its tokens are too few.
int64_t TilePieceNeurons(int64_t neurons, int64_t rows, int64_t neuron_bytes, int tile_rows,
                         int threads) {
  if (rows < tile_rows * neurons) return 0;
  const int64_t most =
      std::clamp(kMostTilePieceBytes / neuron_bytes, kAmxTileNeurons, kMostTilePieceNeurons);
  const int64_t size = std::min(neurons / (threads * kTilePiecesPerThread), most);
  return size / kAmxTileNeurons * kAmxTileNeurons;
}

int64_t PieceNeurons(std::span<const ColdItem> items, int64_t neuron_bytes, int tile_rows,
                     int threads) {
  int64_t neurons = 0;
  int64_t rows = 0;  // of each neuron
  for (const ColdItem& item : items) {
    neurons += item.num_neurons;
    rows += int64_t{item.num_neurons} * item.num_pairs;
  }
  const int64_t in_tiles = TilePieceNeurons(neurons, rows, neuron_bytes, tile_rows, threads);
  if (in_tiles > 0) return in_tiles;
  const int64_t size =
      neurons / (threads * kPiecesPerThread) / kLeastPieceNeurons * kLeastPieceNeurons;
  return std::clamp(size, kLeastPieceNeurons, kMostPieceNeurons);
}

// So that each thread has something to add, once.
int64_t SumColumns(int64_t columns, int threads) {
  const int64_t each = (columns + threads - 1) / threads;
  return std::min((each + kOrderedSums - 1) / kOrderedSums * kOrderedSums, kMostSumColumns);
}

int64_t PiecesOf(const ColdItem& item, int64_t neurons) {
  return (item.num_neurons + neurons - 1) / neurons;
}

int64_t PiecesIn(std::span<const ColdItem> items, int64_t neurons) {
  int64_t count = 0;
  for (const ColdItem& item : items) count += PiecesOf(item, neurons);
  return count;
}

}  // namespace

// A thread's pieces of a request: of those that it has fetched, then of all in the order of the
// items, from a counter that the threads share; each only if no other has taken it.
class ColdExperts::PieceTaker {
 public:
  PieceTaker(const Call& call, std::span<const FetchedNeurons> fetched,
             std::span<std::atomic<uint64_t>> claims, std::atomic<int64_t>* next_piece)
      : call_(call),
        item_(call.items.begin()),
        fetched_(fetched),
        claims_(claims),
        next_piece_(next_piece) {}

  Piece Take() {
    while (!fetched_.empty()) {
      const Piece piece = TakeFetched(fetched_.front());
      if (piece.item != nullptr) return piece;
      fetched_ = fetched_.subspan(1);
      in_run_ = 0;
    }
    return TakeShared();
  }

 private:
  // The next piece that begins in a run; none is left or asked for: without an item.
  Piece TakeFetched(const FetchedNeurons& run) {
    int64_t index = 0;
    for (const ColdItem& item : call_.items) {
      const int64_t pieces = PiecesOf(item, call_.piece_neurons);
      if (item.expert != run.expert) {
        index += pieces;
        continue;
      }
      const int64_t from = std::max(run.first - item.first_neuron, 0);
      const int64_t to = std::max(run.first + run.count - item.first_neuron, 0);
      for (int64_t i = (from + call_.piece_neurons - 1) / call_.piece_neurons + in_run_;
           i < pieces && i * call_.piece_neurons < to; ++i) {
        ++in_run_;
        if (Claim(index + i)) return PieceOf(item, i, /*fetched=*/true);
      }
      break;
    }
    return {};
  }

  Piece TakeShared() {
    for (;;) {
      const int64_t piece = next_piece_->fetch_add(1, std::memory_order_relaxed);
      if (piece >= call_.num_pieces) return {};
      while (piece >= item_begin_ + PiecesOf(*item_, call_.piece_neurons)) {
        item_begin_ += PiecesOf(*item_++, call_.piece_neurons);
      }
      if (Claim(piece)) return PieceOf(*item_, piece - item_begin_, /*fetched=*/false);
    }
  }

  bool Claim(int64_t piece) {
    return claims_[piece].exchange(call_.number, std::memory_order_relaxed) != call_.number;
  }

  Piece PieceOf(const ColdItem& item, int64_t index, bool fetched) const {
    const int64_t first = index * call_.piece_neurons;
    return {.item = &item,
            .first = item.first_neuron + first,
            .count = std::min<int64_t>(call_.piece_neurons, item.num_neurons - first),
            .fetched = fetched};
  }

  const Call& call_;
  std::span<const ColdItem>::iterator item_;
  int64_t item_begin_ = 0;  // pieces before item_
  std::span<const FetchedNeurons> fetched_;
  int64_t in_run_ = 0;  // pieces of the first of fetched_ that were looked at
  std::span<std::atomic<uint64_t>> claims_;
  std::atomic<int64_t>* next_piece_;
};

ColdExperts::ColdExperts(ThreadPool& pool, const ExpertFormat& format)
    : pool_(pool),
      format_(format),
      kernels_(BestExpertKernels()),
      has_worked_(pool.num_threads()) {}

ColdExperts::Worker ColdExperts::WorkerAt(int worker) const {
  float* const first = memory_.get() + worker * worker_floats_;
  return {.scratch = first, .sums = first + kernels_.few_rows_limit * format_.row_values()};
}

ColdNeurons ColdExperts::Run(const std::byte* experts, const ColdMailbox& mailbox, ColdFetch& fetch,
                             absl::FunctionRef<void()> answer, absl::FunctionRef<bool()> stop) {
  items_.assign(mailbox.items, mailbox.items + mailbox.request->num_items);
  const int64_t piece_neurons = PieceNeurons(items_, static_cast<int64_t>(format_.neuron_bytes()),
                                             kernels_.tile_rows, pool_.num_threads());
  const Call call = {.experts = experts,
                     .mailbox = mailbox,
                     .items = items_,
                     .rows = mailbox.request->rows,
                     .piece_neurons = piece_neurons,
                     .num_pieces = PiecesIn(items_, piece_neurons),
                     .number = ++calls_,
                     .fetch = fetch,
                     .answer = answer};
  Reserve(call);
  fetch.Begin(mailbox);
  pool_.ParallelFor(pool_.num_threads(), 1, [&](int64_t share, int64_t, int worker) {
    RunAndAdd(call, worker);
    fetch.Fetch(static_cast<int>(share), worker, stop);
  });
  ColdNeurons neurons;
  for (const ColdItem& item : items_) neurons.computed += item.num_neurons;
  neurons.fetched_ahead = neurons_fetched_.load(std::memory_order_relaxed);
  return neurons;
}

void ColdExperts::Reserve(const Call& call) {
  worker_floats_ = (kernels_.few_rows_limit + call.rows) * format_.row_values();
  memory_.Reserve(worker_floats_ * pool_.num_threads());
  std::fill(has_worked_.begin(), has_worked_.end(), uint8_t{0});
  const auto pieces = static_cast<size_t>(call.num_pieces);
  if (claims_.size() < pieces) claims_ = std::vector<std::atomic<uint64_t>>(2 * pieces);
  for (auto* counter : {&next_piece_, &pieces_done_, &next_sum_, &sums_done_, &neurons_fetched_}) {
    counter->store(0, std::memory_order_relaxed);
  }
}

// All in one loop, since ending one and starting another takes longer than adding up. A thread that
// comes twice, for one that sleeps, finds nothing left to do.
void ColdExperts::RunAndAdd(const Call& call, int worker) {
  pieces_done_.fetch_add(RunPieces(call, worker), std::memory_order_acq_rel);
  call.fetch.ScoreOwn(worker);  // while others are not done yet
  WaitForPieces(call);
  call.fetch.ScoreOthers(worker);
  const int64_t columns = SumColumns(call.rows * format_.hidden(), pool_.num_threads());
  const int64_t chunks = (format_.hidden() + columns - 1) / columns;
  const int64_t count = call.rows * chunks;
  int64_t added = 0;
  for (int64_t i; (i = next_sum_.fetch_add(1, std::memory_order_relaxed)) < count; ++added) {
    AddUp(call, i / chunks, i % chunks * columns, columns);
  }
  if (added == 0) return;
  if (sums_done_.fetch_add(added, std::memory_order_acq_rel) + added < count) return;
  call.fetch.WaitForScores();
  call.answer();
}

// Returns how many.
int64_t ColdExperts::RunPieces(const Call& call, int worker) {
  PieceTaker pieces(call, call.fetch.FetchedBy(worker), claims_, &next_piece_);
  Piece piece = pieces.Take();
  if (piece.item == nullptr) return 0;
  Worker memory = WorkerAt(worker);
  if (has_worked_[worker] == 0) {
    std::fill_n(memory.sums, call.rows * format_.row_values(), 0.0f);
    has_worked_[worker] = 1;
  }
  int64_t count = 0;
  int64_t fetched = 0;
  for (; piece.item != nullptr; ++count) {
    if (piece.fetched) fetched += piece.count;
    const Piece next = pieces.Take();
    const std::byte* ahead =
        next.item != nullptr ? WeightsOf(call, next) : call.fetch.ScoreWeights(worker);
    if (ahead == nullptr) ahead = WeightsOf(call, piece);  // nothing new
    RunPiece(call, piece, ahead, &memory);
    piece = next;
  }
  neurons_fetched_.fetch_add(fetched, std::memory_order_relaxed);
  return count;
}

void ColdExperts::WaitForPieces(const Call& call) const {
  SpinWait spin;
  while (pieces_done_.load(std::memory_order_acquire) != call.num_pieces) spin.Pause();
}

const std::byte* ColdExperts::WeightsOf(const Call& call, const Piece& piece) const {
  return call.experts + piece.item->expert * format_.blob_bytes() +
         format_.neuron_offset(piece.first);
}

void ColdExperts::RunPiece(const Call& call, const Piece& piece, const std::byte* next,
                           Worker* memory) {
  const int64_t width = format_.row_values();
  const ExpertNeurons neurons{format_, call.experts + piece.item->expert * format_.blob_bytes(),
                              piece.first, piece.count, next};
  const ColdPair* pairs = call.mailbox.pairs + piece.item->first_pair;
  const bool one_pass = piece.item->num_pairs <= kernels_.few_rows_limit;
  const bool prepared = one_pass && memory->prepared == piece.item;
  memory->prepared = one_pass ? piece.item : nullptr;
  for (int left = piece.item->num_pairs; left > 0;) {
    const int num = std::min(left, kernels_.few_rows_limit);
    const BFloat16* x[kMaxFewRows];
    float weights[kMaxFewRows];
    float* y[kMaxFewRows];
    for (int r = 0; r < num; ++r) {
      x[r] = call.mailbox.x + pairs[r].row * width;
      weights[r] = pairs[r].weight;
      y[r] = memory->sums + pairs[r].row * width;
    }
    kernels_.few_rows(neurons, {.x = x,
                                .weights = weights,
                                .num = num,
                                .width = width,
                                .scratch = memory->scratch,
                                .y = y,
                                .prepared = prepared});
    pairs += num;
    left -= num;
  }
}

void ColdExperts::AddUp(const Call& call, int64_t row, int64_t column, int64_t columns) const {
  alignas(64) float total[kMostSumColumns] = {};
  columns = std::min(columns, format_.row_values() - column);
  for (int worker = 0; worker < pool_.num_threads(); ++worker) {
    if (has_worked_[worker] == 0) continue;
    const float* const sums = WorkerAt(worker).sums + row * format_.row_values() + column;
    for (int64_t i = 0; i < columns; ++i) total[i] += sums[i];
  }
  kernels_.order_sums(total, columns);
  std::copy_n(total, std::min(columns, format_.hidden() - column),
              call.mailbox.sums + row * format_.hidden() + column);
}

}  // namespace moed::backend
