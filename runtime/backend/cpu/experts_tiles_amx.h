// What experts_few_rows_amx.cc does in tiles: x and gate and up rows multiplied, then down rows
// added to the sums. Only for that file, which sets the target. The caller's thread.
#pragma once

#include <algorithm>

#include "runtime/backend/cpu/amx_tiles.h"
#include "runtime/backend/cpu/experts_rows_avx512.h"
#include "runtime/backend/cpu/weight_fetcher.h"

#define MOED_AMX_TARGET "amx-tile,amx-bf16," MOED_AVX512_BF16_TARGET
#define MOED_AMX __attribute__((target(MOED_AMX_TARGET), always_inline)) inline
#define MOED_AMX_ENTRY __attribute__((target(MOED_AMX_TARGET)))

namespace moed::backend {

// Pairs of values in a row of a tile.
constexpr int kTilePairs = 16;
// Sums in a row of a tile.
constexpr int kTileSums = 16;

// The intrinsics want tile registers as literals:
//   0, 1  sums of gate and up rows [neurons][tokens]
//   2     x [pairs of values][tokens]
//   3     gate or up rows [neurons][32 values]
//   4, 5  sums of the down rows' even columns and of their odd ones [tokens][columns]
//   6     factors [tokens][neurons], whose down rows are added at once
//   7     down rows [pairs of neurons][columns]

MOED_AMX void ConfigureTiles(int tokens, int padded_tokens, int down_neurons) {
  TileConfig config;
  for (const int tile : {0, 1}) config.Set(tile, kAmxTileNeurons, 4 * padded_tokens);
  config.Set(2, kTilePairs, 4 * padded_tokens);
  config.Set(3, kAmxTileNeurons, 64);
  for (const int tile : {4, 5}) config.Set(tile, tokens, 4 * kTileSums);
  config.Set(6, tokens, 2 * down_neurons);
  config.Set(7, down_neurons / 2, 64);
  config.Load();
}

// x of eight tokens from the first on, values [i, i + 32): pairs[p * stride + t] is pair p of
// token t. Tokens behind the last are the last.
MOED_AMX void TransposeEight(const FewRows& rows, int first, int64_t i, uint32_t* pairs,
                             int64_t stride) {
  __m512i x[8];
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) {
    x[t] = _mm512_loadu_si512(rows.x[std::min(first + t, rows.num - 1)] + i);
  }
  // Lane l of quads[h][j]: pair 4 l + j of tokens 4 h to 4 h + 3.
  __m512i quads[2][4];
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m512i* four = x + 4 * h;
    const __m512i low[2] = {_mm512_unpacklo_epi32(four[0], four[1]),
                            _mm512_unpacklo_epi32(four[2], four[3])};
    const __m512i high[2] = {_mm512_unpackhi_epi32(four[0], four[1]),
                             _mm512_unpackhi_epi32(four[2], four[3])};
    quads[h][0] = _mm512_unpacklo_epi64(low[0], low[1]);
    quads[h][1] = _mm512_unpackhi_epi64(low[0], low[1]);
    quads[h][2] = _mm512_unpacklo_epi64(high[0], high[1]);
    quads[h][3] = _mm512_unpackhi_epi64(high[0], high[1]);
  }
  const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i halves[2] = {_mm512_permutex2var_epi64(quads[0][j], lower, quads[1][j]),
                               _mm512_permutex2var_epi64(quads[0][j], upper, quads[1][j])};
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      uint32_t* const to = pairs + (8 * h + j) * stride;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(halves[h]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4 * stride),
                          _mm512_extracti64x4_epi64(halves[h], 1));
    }
  }
}

// packed: tiles [pairs][kPadded] of 32 values each.
template <int kPadded>
MOED_AMX void PackTokens(const FewRows& rows, BFloat16* packed) {
  for (int64_t i = 0; i < rows.width; i += kBlock) {
    auto* const tile = reinterpret_cast<uint32_t*>(packed + i * kPadded);
    for (int t = 0; t < kPadded; t += 8) TransposeEight(rows, t, i, tile + t, kPadded);
  }
}

// A span is decoded or interleaved into memory at once: by the time that tiles are loaded from
// there, the next span is on its way, since a tile waits until what was stored last has left the
// store buffer.

// Gate or up rows as tiles of 32 values. Of bf16 they are where the weights lie.
struct Bf16Tiles {
  const std::byte* values;
  int64_t stride;

  MOED_AMX explicit Bf16Tiles(const Bf16Row (&rows)[kAmxTileNeurons])
      : values(rows[0].values), stride(rows[1].values - rows[0].values) {}
  MOED_AMX void Decode(int64_t, WeightFetcher*) {}
  MOED_AMX void Load(int64_t i, int group, WeightFetcher* fetcher) const {
    fetcher->Fetch<2 * kAmxTileNeurons * kBlock>();
    _tile_loadd(3, values + 2 * (i + group * kBlock), stride);
  }
};

// bf12 is decoded into memory that stays in the L1 cache. Of what is fetched meanwhile, two thirds
// come while rows are decoded and the rest with the tiles, as the time is divided.
template <class Row>
struct DecodedTiles {
  const Row (&rows)[kAmxTileNeurons];
  alignas(64) BFloat16 tiles[2][kSpanGroups][kAmxTileNeurons][kBlock];

  MOED_AMX explicit DecodedTiles(const Row (&r)[kAmxTileNeurons]) : rows(r) {}
  MOED_AMX void Decode(int64_t i, WeightFetcher* fetcher) {
    auto& span = tiles[i / kSpan % 2];
#pragma GCC unroll 4
    for (int n = 0; n < kAmxTileNeurons; ++n) {
      fetcher->Fetch<Row::kSpanBytes / 3 * 2>();
      const typename Row::Span read = rows[n].Load(i);
#pragma GCC unroll 4
      for (int group = 0; group < kSpanGroups; ++group) {
        _mm512_store_si512(span[group][n], rows[n].Decode(read, group));
      }
    }
  }
  MOED_AMX void Load(int64_t i, int group, WeightFetcher* fetcher) const {
    fetcher->Fetch<kAmxTileNeurons * Row::kSpanBytes / 3 / kSpanGroups>();
    _tile_loadd(3, tiles[i / kSpan % 2][group], 2 * kBlock);
  }
};

MOED_AMX Bf16Tiles TilesOf(const Bf16Row (&rows)[kAmxTileNeurons]) { return Bf16Tiles(rows); }
template <class Row>
MOED_AMX DecodedTiles<Row> TilesOf(const Row (&rows)[kAmxTileNeurons]) {
  return DecodedTiles<Row>(rows);
}

// gate, up: [neurons][kPadded], unscaled.
template <int kPadded, class Row>
MOED_AMX void MultiplyTokens(const Row (&gate_rows)[kAmxTileNeurons],
                             const Row (&up_rows)[kAmxTileNeurons], const BFloat16* packed,
                             int64_t width, WeightFetcher* fetcher, float* gate, float* up) {
  auto gate_tiles = TilesOf(gate_rows);
  auto up_tiles = TilesOf(up_rows);
  gate_tiles.Decode(0, fetcher);
  up_tiles.Decode(0, fetcher);
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t i = 0; i < width; i += kSpan) {
    if (i + kSpan < width) {
      gate_tiles.Decode(i + kSpan, fetcher);
      up_tiles.Decode(i + kSpan, fetcher);
    }
    const int groups = GroupsAt(i, width);
    for (int group = 0; group < groups; ++group) {
      _tile_loadd(2, packed + (i + group * kBlock) * kPadded, 4 * kPadded);
      gate_tiles.Load(i, group, fetcher);
      _tile_dpbf16ps(0, 3, 2);
      up_tiles.Load(i, group, fetcher);
      _tile_dpbf16ps(1, 3, 2);
    }
  }
  _tile_stored(0, gate, 4 * kPadded);
  _tile_stored(1, up, 4 * kPadded);
}

// Adds down rows in three steps of a span each, one behind the other. The first two fetch.
template <int kDown, class Row>
class DownRows {
 public:
  MOED_AMX DownRows(const Row (&down)[kDown], const BFloat16 (*factors)[kDown], const FewRows& rows)
      : down_(down), rows_(rows) {
    _tile_loadd(6, factors, sizeof(factors[0]));
  }

  // y[r] += weights[r] * the sums over neurons of factors[r][n] * their down rows.
  MOED_AMX void Add(WeightFetcher* fetcher) {
    for (int64_t i = 0; i < rows_.width + 2 * kSpan; i += kSpan) {
      if (i < rows_.width) Interleave(i, fetcher);
      if (i >= kSpan && i - kSpan < rows_.width) Multiply(i - kSpan, fetcher);
      if (i >= 2 * kSpan) AddSums(i - 2 * kSpan);
    }
  }

 private:
  struct Span {
    __m512i pairs[kSpanGroups][2][kDown / 2];
    float sums[kSpanGroups][2][kMaxFewRows][kTileSums];
  };

  // Pairs of neurons' values at even columns, and at odd ones.
  MOED_AMX void Interleave(int64_t i, WeightFetcher* fetcher) {
    constexpr __mmask32 kUpperHalves = 0xaaaaaaaa;
    auto& pairs = spans_[i / kSpan % 2].pairs;
    const int groups = GroupsAt(i, rows_.width);
#pragma GCC unroll 4
    for (int p = 0; p < kDown / 2; ++p) {
      fetcher->Fetch<Row::kSpanBytes>();
      const Row& even = down_[2 * p];
      const Row& odd = down_[2 * p + 1];
      const typename Row::Span spans[2] = {even.Load(i), odd.Load(i)};
#pragma GCC unroll 4
      for (int group = 0; group < kSpanGroups; ++group) {
        if (group >= groups) break;
        const __m512i first = even.Decode(spans[0], group);
        const __m512i second = odd.Decode(spans[1], group);
        pairs[group][0][p] =
            _mm512_mask_blend_epi16(kUpperHalves, first, _mm512_slli_epi32(second, 16));
        pairs[group][1][p] =
            _mm512_mask_blend_epi16(kUpperHalves, _mm512_srli_epi32(first, 16), second);
      }
    }
  }

  MOED_AMX void Multiply(int64_t i, WeightFetcher* fetcher) {
    Span& span = spans_[i / kSpan % 2];
    const int groups = GroupsAt(i, rows_.width);
    for (int group = 0; group < groups; ++group) {
      fetcher->Fetch<kDown * Row::kSpanBytes / 2 / kSpanGroups>();
      _tile_zero(4);
      _tile_loadd(7, span.pairs[group][0], 64);
      _tile_dpbf16ps(4, 6, 7);
      _tile_zero(5);
      _tile_loadd(7, span.pairs[group][1], 64);
      _tile_dpbf16ps(5, 6, 7);
      _tile_stored(4, span.sums[group][0], 64);
      _tile_stored(5, span.sums[group][1], 64);
    }
  }

  MOED_AMX void AddSums(int64_t i) {
    const auto& sums = spans_[i / kSpan % 2].sums;
    const int groups = GroupsAt(i, rows_.width);
    for (int r = 0; r < rows_.num; ++r) {
      const __m512 weight = _mm512_set1_ps(rows_.weights != nullptr ? rows_.weights[r] : 1.0f);
      for (int group = 0; group < groups; ++group) {
        float* const target = rows_.y[r] + i + group * kBlock;
        const __m512 even = _mm512_loadu_ps(target);
        const __m512 odd = _mm512_loadu_ps(target + kTileSums);
        _mm512_storeu_ps(target, _mm512_fmadd_ps(weight, _mm512_load_ps(sums[group][0][r]), even));
        _mm512_storeu_ps(target + kTileSums,
                         _mm512_fmadd_ps(weight, _mm512_load_ps(sums[group][1][r]), odd));
      }
    }
  }

  const Row (&down_)[kDown];
  const FewRows& rows_;
  alignas(64) Span spans_[2];
};

}  // namespace moed::backend
