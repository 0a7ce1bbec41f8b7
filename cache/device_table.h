// What host and device say to each other about residency when the device drives (docs/DESIGN.md):
// numbered updates one way, traces the other. Plain data, fit for kernels and mapped memory.
//
// The device owns the working table: one TableEntry per (layer, expert), and per layer a list of
// offered slots. Between two steps it applies the edits of at most one published update, in order.
// During a step, an expert without a slot is computed from host memory; if filling is allowed and
// its layer has an offered slot, the kernel takes that slot off the list, writes the expert into it
// while it computes, and makes the entry point there once all of it is written. An offered slot may
// still hold an expert that is read there until it is filled: then that expert's entry points
// nowhere. The kernel takes the last slot on the list (withdrawals may change its order), and none
// while that one's expert is used in the same step. Edits instead of whole tables, because a whole
// table would undo the fills made since the host last heard.
#pragma once

#include <cstdint>
#include <vector>

namespace moed::cache {

struct TableEntry {
  int32_t slot = -1;        // -1: only in host memory
  uint32_t generation = 0;  // of the slot
  uint32_t fill_allowed = 0;
};

enum class TableEditKind : int32_t {
  kInsert,      // the host filled `slot`: if the entry points nowhere, it now points there; the
                // permission to fill ends
  kEvict,       // the entry points nowhere, if it points to `slot` at `generation`
  kOffer,       // `slot` joins the layer's offered slots; `expert` may still lie in it
  kWithdraw,    // `slot` leaves the layer's offered slots, if it is still there
  kAllowFill,   // the next read of the expert from host memory may fill an offered slot
  kForbidFill,  // not any more; a fill also ends the permission
};

struct TableEdit {
  TableEditKind kind = TableEditKind::kInsert;
  int32_t layer = 0;
  int32_t expert = -1;  // -1 for kWithdraw, and for kOffer if the slot holds nothing
  int32_t slot = -1;    // -1 for kAllowFill and kForbidFill
  uint32_t generation = 0;

  friend bool operator==(const TableEdit&, const TableEdit&) = default;
};

struct TableUpdate {
  uint64_t number = 0;  // rises by one with every update that has edits; 0: the empty table
  std::vector<TableEdit> edits = {};
};

enum class DeviceUseKind : int32_t {
  kHit,     // read from `slot`
  kFilled,  // read from host memory and written into `slot`
  kCold,    // read from host memory, or computed by the CPU
};

// One expert used in one layer of a step.
struct DeviceUse {
  DeviceUseKind kind = DeviceUseKind::kCold;
  int32_t layer = 0;
  int32_t expert = 0;
  int32_t tokens = 0;  // as in ExpertLoad
  float weight = 0;    // as in ExpertLoad
  int32_t slot = -1;   // -1 for kCold
  uint32_t generation = 0;
};

// One step of the device, sent when all of its kernels are done; steps come in order.
struct DeviceTrace {
  uint64_t table_number = 0;         // the last update applied before the step
  std::vector<DeviceUse> uses = {};  // layer by layer, at most one for a (layer, expert)
};

}  // namespace moed::cache
