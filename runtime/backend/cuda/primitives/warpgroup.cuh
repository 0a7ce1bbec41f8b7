// The PTX of Hopper's warpgroup products (wgmma): four warps multiply tiles that lie in shared
// memory, asynchronously, into registers. For code compiled for sm_90a alone.
//
// Tiles have rows of 128 bytes, 64 bf16, in groups of eight rows, 1024 bytes, aligned; the 16-byte
// pieces of row r are exchanged by r % 8, as tensor copies with a swizzle of 128 bytes leave them.
#pragma once

#include <cstdint>

namespace moed::backend {

constexpr int kWarpgroupThreads = 128;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A tile in shared memory at `address`. Both distances between groups of rows are a group's bytes.
__device__ __forceinline__ uint64_t TileDescriptor(uint32_t address) {
  constexpr uint64_t kGroup = 1024 >> 4;
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(address & 0x3ffff) >> 4} | kGroup << 16 | kGroup << 32 | kSwizzle128 << 62;
}
// A tile that is read by its columns, 64 of them, and tiles like it, each for 64 more, at distances
// of `tile_bytes`.
__device__ __forceinline__ uint64_t ColumnsDescriptor(uint32_t address, int tile_bytes) {
  constexpr uint64_t kGroup = 1024 >> 4;
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t(tile_bytes >> 4) << 16 | kGroup << 32 |
         kSwizzle128 << 62;
}
// The descriptor of what lies `bytes` behind.
__device__ __forceinline__ uint64_t Advance(uint64_t descriptor, int bytes) {
  return descriptor + (bytes >> 4);
}

// What registers and shared memory hold is there for the products that follow.
__device__ __forceinline__ void BeginProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kNewer groups of products, the latest, are under way.
template <int kNewer>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewer) : "memory");
}
// Keeps the compiler from moving uses of sums across a wait.
template <int kCount>
__device__ __forceinline__ void PinSums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Moves registers between the warpgroups of a block; all threads of a warpgroup.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The instruction names every register.
#define MOED_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define MOED_NAMES_32 \
  MOED_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MOED_NAMES_48 \
  MOED_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define MOED_NAMES_56 MOED_NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define MOED_NAMES_64 MOED_NAMES_56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define MOED_NAMES_72 MOED_NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define MOED_NAMES_80 MOED_NAMES_72 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define MOED_SUMS_8(i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOED_SUMS_16 MOED_SUMS_8(0), MOED_SUMS_8(8)
#define MOED_SUMS_32 MOED_SUMS_16, MOED_SUMS_8(16), MOED_SUMS_8(24)
#define MOED_SUMS_48 MOED_SUMS_32, MOED_SUMS_8(32), MOED_SUMS_8(40)
#define MOED_SUMS_56 MOED_SUMS_48, MOED_SUMS_8(48)
#define MOED_SUMS_64 MOED_SUMS_56, MOED_SUMS_8(56)
#define MOED_SUMS_72 MOED_SUMS_64, MOED_SUMS_8(64)
#define MOED_SUMS_80 MOED_SUMS_72, MOED_SUMS_8(72)
// a, b and transposed: the numbers of the operands behind the sums.
#define MOED_WARPGROUP_PRODUCT(columns, sums, a, b, transposed)                            \
  asm volatile(                                                                            \
      "{\n.reg .pred add;\nsetp.eq.b32 add, 0, 0;\n"                                       \
      "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" MOED_NAMES_##sums \
      "}, %" #a ", %" #b ", add, 1, 1, %" #transposed ", 0;\n}"                            \
      : MOED_SUMS_##sums                                                                   \
      : "l"(a_tile), "l"(b_tile), "n"(kTransposedA ? 1 : 0)                                \
      : "memory")

// d[64, kColumns] += a[64, 16] b[16, kColumns], by a warpgroup: warp w has rows 16 w to 16 w + 15,
// a lane of it rows l / 4 and l / 4 + 8 of columns 8 j + 2 (l % 4) and the next, for every j. Rows
// of b's tile are its columns; rows of a's tile are its rows, or, transposed, its columns.
template <int kColumns, bool kTransposedA>
__device__ __forceinline__ void Multiply(float (&d)[kColumns / 2], uint64_t a_tile,
                                         uint64_t b_tile) {
  if constexpr (kColumns == 32) {
    MOED_WARPGROUP_PRODUCT(32, 16, 16, 17, 18);
  } else if constexpr (kColumns == 64) {
    MOED_WARPGROUP_PRODUCT(64, 32, 32, 33, 34);
  } else if constexpr (kColumns == 96) {
    MOED_WARPGROUP_PRODUCT(96, 48, 48, 49, 50);
  } else if constexpr (kColumns == 112) {
    MOED_WARPGROUP_PRODUCT(112, 56, 56, 57, 58);
  } else if constexpr (kColumns == 128) {
    MOED_WARPGROUP_PRODUCT(128, 64, 64, 65, 66);
  } else if constexpr (kColumns == 144) {
    MOED_WARPGROUP_PRODUCT(144, 72, 72, 73, 74);
  } else {
    static_assert(kColumns == 160, "no product of so many columns");
    MOED_WARPGROUP_PRODUCT(160, 80, 80, 81, 82);
  }
}

// d[64, 128] = a b, or += where `add`; tiles as Multiply<128, false> takes them.
__device__ __forceinline__ void MultiplyInto(float (&d)[64], uint64_t a_tile, uint64_t b_tile,
                                             bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MOED_NAMES_64
      "}, %64, %65, add, 1, 1, 0, 0;\n}"
      : MOED_SUMS_64
      : "l"(a_tile), "l"(b_tile), "r"(int{add})
      : "memory");
}

// `a` lies in registers: a lane has of a[64, 16] what it has of the sums of 16 columns, in pairs of
// neighbours; they must stay until the product is done. b's tile is a ColumnsDescriptor's.
#define MOED_REGISTERS_PRODUCT(columns, sums, a0, a1, a2, a3, b)                           \
  asm volatile(                                                                            \
      "{\n.reg .pred add;\nsetp.eq.b32 add, 0, 0;\n"                                       \
      "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" MOED_NAMES_##sums \
      "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", add, 1, 1, 1;\n}"             \
      : MOED_SUMS_##sums                                                                   \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile)                            \
      : "memory")

// d[64, kColumns] += a b.
template <int kColumns>
__device__ __forceinline__ void MultiplyRegisters(float (&d)[kColumns / 2], const uint32_t* a,
                                                  uint64_t b_tile) {
  if constexpr (kColumns == 64) {
    MOED_REGISTERS_PRODUCT(64, 32, 32, 33, 34, 35, 36);
  } else {
    static_assert(kColumns == 128, "no product of so many columns");
    MOED_REGISTERS_PRODUCT(128, 64, 64, 65, 66, 67, 68);
  }
}

#undef MOED_REGISTERS_PRODUCT
#undef MOED_WARPGROUP_PRODUCT
#undef MOED_SUMS_80
#undef MOED_SUMS_72
#undef MOED_SUMS_64
#undef MOED_SUMS_56
#undef MOED_SUMS_48
#undef MOED_SUMS_32
#undef MOED_SUMS_16
#undef MOED_SUMS_8
#undef MOED_NAMES_80
#undef MOED_NAMES_72
#undef MOED_NAMES_64
#undef MOED_NAMES_56
#undef MOED_NAMES_48
#undef MOED_NAMES_32
#undef MOED_NAMES_16

#endif

}  // namespace moed::backend
