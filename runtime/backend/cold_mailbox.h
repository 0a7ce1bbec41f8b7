// What a device and the host's CPU say to each other about cold experts within a step, through
// memory that both reach: the device posts a request and goes on; the CPU answers it with sums. One
// request at a time: the next comes only after the device has taken the answer. Plain data.
//
// A request is all it names, then its sequence number, stored last; the answer likewise. Numbers
// rise by one from 1 on and wrap round.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/dtype.h"

namespace moed::backend {

// Neurons [first_neuron, first_neuron + num_neurons) of an expert, for the rows of pairs
// [first_pair, first_pair + num_pairs).
struct ColdItem {
  int32_t expert = 0;
  int32_t first_neuron = 0;
  int32_t num_neurons = 0;
  int32_t first_pair = 0;
  int32_t num_pairs = 0;
};

struct ColdPair {
  int32_t row = 0;
  float weight = 0;
};

struct ColdRequest {
  uint32_t sequence = 0;
  int32_t layer = 0;
  int32_t rows = 0;
  int32_t num_items = 0;
};

struct ColdReply {
  uint32_t sequence = 0;
};

struct ColdMailboxSize {
  int64_t max_rows = 0;
  int64_t max_items = 0;
  int64_t max_pairs = 0;
  int64_t row_values = 0;  // of the expert format
  int64_t hidden = 0;
};

// Pointers into one allocation, zeroed at first.
struct ColdMailbox {
  ColdRequest* request = nullptr;
  ColdReply* reply = nullptr;
  ColdItem* items = nullptr;
  ColdPair* pairs = nullptr;
  BFloat16* x = nullptr;  // [max_rows, row_values]; beyond hidden it stays zero
  float* sums = nullptr;  // [max_rows, hidden]
  int64_t row_values = 0;
  int64_t hidden = 0;
};

// Every part begins at a multiple of this, so that none shares a cache line with another's.
inline constexpr size_t kColdMailboxAlignment = 256;

size_t ColdMailboxBytes(const ColdMailboxSize& size);

// `memory`: ColdMailboxBytes(), aligned to kColdMailboxAlignment.
ColdMailbox CutColdMailbox(const ColdMailboxSize& size, std::byte* memory);

}  // namespace moed::backend
