#include "runtime/backend/cpu/experts_amx.h"

#if defined(__x86_64__)

#include <algorithm>

#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_avx512.h"
#include "runtime/backend/cpu/experts_tiles_amx.h"

// GCC 12's headers make undefined vectors by reading them, and warn where they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace moed::backend {
namespace {

// sums[0], sums[1]: gate and up of neurons [first, first + kDown), [neurons][kPadded].
template <int kPadded, int kDown, class Neurons>
MOED_AMX void MultiplyGateUp(const Neurons& neurons, int64_t first, const FewRows& rows,
                             WeightFetcher* fetcher, float (&sums)[2][kDown][kPadded]) {
  const auto* const packed = reinterpret_cast<const BFloat16*>(rows.scratch);
  for (int tile = 0; tile < kDown; tile += kAmxTileNeurons) {
    decltype(RowAt(neurons, first, 0)) parts[2][kAmxTileNeurons];
    for (int part = 0; part < 2; ++part) {
      for (int n = 0; n < kAmxTileNeurons; ++n)
        parts[part][n] = RowAt(neurons, first + tile + n, part);
    }
    MultiplyTokens<kPadded>(parts[0], parts[1], packed, rows.width, fetcher, sums[0][tile],
                            sums[1][tile]);
    for (int part = 0; part < 2; ++part) {
      for (int n = 0; n < kAmxTileNeurons; ++n) {
        const float scale = parts[part][n].Scale();
        for (float& sum : sums[part][tile + n]) sum *= scale;
      }
    }
  }
  for (int n = 0; n < kDown; ++n) {
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part == 2) return;
      for (int r = 0; r < rows.num; ++r) sums[part][n][r] += delta * ToFloat(rows.x[r][column]);
    });
  }
}

// What the down rows' escapes change of y.
template <int kPadded, int kDown, class Neurons>
MOED_AMX void AddDownEscapes(const Neurons& neurons, int64_t first,
                             const BFloat16 (&act)[kDown][kPadded], const FewRows& rows) {
  for (int n = 0; n < kDown; ++n) {
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part != 2) return;
      for (int r = 0; r < rows.num; ++r) {
        const float weight = rows.weights != nullptr ? rows.weights[r] : 1.0f;
        rows.y[r][SumIndex(column)] += delta * ToFloat(act[n][r]) * weight;
      }
    });
  }
}

// y += the part of neurons [first, first + kDown).
template <int kPadded, int kDown, class Neurons>
MOED_AMX void AddNeurons(const Neurons& neurons, int64_t first, const FewRows& rows) {
  using Row = decltype(RowAt(neurons, first, 0));
  WeightFetcher fetcher(neurons.Next(first, kDown));
  alignas(64) float sums[2][kDown][kPadded];
  MultiplyGateUp(neurons, first, rows, &fetcher, sums);
  BFloat16 act[kDown][kPadded];
  ActivateSwiGlu(sums[0][0], sums[1][0], kDown * kPadded, act[0]);
  Row down[kDown];
  for (int n = 0; n < kDown; ++n) down[n] = RowAt(neurons, first + n, 2);
  // A power of two changes no bit of an activation but in its exponent.
  alignas(64) BFloat16 factors[kMaxFewRows][kDown];
  for (int r = 0; r < rows.num; ++r) {
    for (int n = 0; n < kDown; ++n) {
      factors[r][n] = ToBFloat16(ToFloat(act[n][r]) * down[n].Scale());
    }
  }
  DownRows<kDown, Row>(down, factors, rows).Add(&fetcher);
  AddDownEscapes(neurons, first, act, rows);
}

template <int kPadded, int kDown>
MOED_AMX void AddAnyNeurons(const Bf16Neurons& neurons, int64_t first, const FewRows& rows) {
  AddNeurons<kPadded, kDown>(neurons, first, rows);
}
template <int kPadded, int kDown>
MOED_AMX void AddAnyNeurons(const Bf12Neurons& neurons, int64_t first, const FewRows& rows) {
  if (neurons.BasesWithin(first, kDown, ScaledBf12Row::kLeastBase, ScaledBf12Row::kMostBase)) {
    AddNeurons<kPadded, kDown>(ScaledNeurons{neurons}, first, rows);
  } else {
    AddNeurons<kPadded, kDown>(neurons, first, rows);
  }
}

// Neurons [first, ...) as far as they fill kDown; returns the first of the rest.
template <int kPadded, int kDown, class Neurons>
MOED_AMX_ENTRY int64_t AddTiles(const Neurons& neurons, int64_t first, const FewRows& rows) {
  if (first + kDown > neurons.count()) return first;
  ConfigureTiles(rows.num, kPadded, kDown);
  for (; first + kDown <= neurons.count(); first += kDown) {
    AddAnyNeurons<kPadded, kDown>(neurons, first, rows);
  }
  _tile_release();
  return first;
}

// The whole tiles of the neurons.
template <int kPadded>
MOED_AMX_ENTRY void RunTiles(const ExpertNeurons& neurons, const FewRows& rows) {
  // Also where there are none: then the next call's x is prepared.
  if (!rows.prepared) PackTokens<kPadded>(rows, reinterpret_cast<BFloat16*>(rows.scratch));
  if (neurons.format.kind() == ExpertFormatKind::kBF12) {
    const Bf12Neurons bf12(neurons);
    AddTiles<kPadded, kAmxTileNeurons>(bf12, AddTiles<kPadded, 2 * kAmxTileNeurons>(bf12, 0, rows),
                                       rows);
  } else {
    const Bf16Neurons bf16(neurons);
    AddTiles<kPadded, kAmxTileNeurons>(bf16, AddTiles<kPadded, 2 * kAmxTileNeurons>(bf16, 0, rows),
                                       rows);
  }
}

// In passes of as many rows as that kernel takes.
void RunAvx512(const ExpertNeurons& neurons, FewRows rows) {
  for (int left = rows.num; left > 0; left -= kAvx512FewRows) {
    rows.num = std::min(left, kAvx512FewRows);
    FewRowsAvx512(neurons, rows);
    rows.x += rows.num;
    rows.y += rows.num;
    if (rows.weights != nullptr) rows.weights += rows.num;
  }
}

}  // namespace

void FewRowsAmx(const ExpertNeurons& neurons, const FewRows& rows) {
  if (rows.num < kAmxTileRows) {
    RunAvx512(neurons, rows);
    return;
  }
  ExpertNeurons tiles = neurons;
  tiles.count = neurons.count / kAmxTileNeurons * kAmxTileNeurons;
  ExpertNeurons rest = neurons;
  rest.first += tiles.count;
  rest.count -= tiles.count;
  if (rest.count > 0) tiles.next = nullptr;
  if (rows.num <= kMaxFewRows / 2) {
    RunTiles<kMaxFewRows / 2>(tiles, rows);
  } else {
    RunTiles<kMaxFewRows>(tiles, rows);
  }
  if (rest.count > 0) RunAvx512(rest, rows);
}

}  // namespace moed::backend

#else

namespace moed::backend {

// Never called: cpu_features.h reports no AMX here.
void FewRowsAmx(const ExpertNeurons&, const FewRows&) {}

}  // namespace moed::backend

#endif
