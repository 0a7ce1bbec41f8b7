// The shapes of AMX's eight tile registers, which a thread sets before it uses them and releases
// afterwards (_tile_release), since the kernel saves the tiles of a thread that holds some. Only
// for files that set the target. The caller's thread.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moed::backend {

// What LDTILECFG reads.
class alignas(64) TileConfig {
 public:
  // rows at most 16, row_bytes at most 64.
  void Set(int tile, int64_t rows, int64_t row_bytes) {
    rows_[tile] = static_cast<uint8_t>(rows);
    row_bytes_[tile] = static_cast<uint16_t>(row_bytes);
  }

  __attribute__((target("amx-tile"))) void Load() const {
    // GCC 12's intrinsic declares that it reads 8 of the 64 bytes.
    __asm__ volatile("" : : "r"(this) : "memory");
    _tile_loadconfig(this);
  }

 private:
  uint8_t palette_ = 1;
  uint8_t start_row_ = 0;
  uint8_t reserved_[14] = {};
  uint16_t row_bytes_[16] = {};
  uint8_t rows_[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace moed::backend
