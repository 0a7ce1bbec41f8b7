// Writes a checkpoint anew with its experts encoded (encoded_layout.h), so that serving it from
// files pages three quarters of the bytes and encodes nothing. Lossless: what is served has the
// same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/bf12_survey.h"
#include "runtime/model/checkpoint.h"

namespace moed::model {

struct ConvertOptions {
  std::string destination = {};  // a folder that does not exist yet
  int threads = 0;               // 0: as many as CPUs
  double max_stored_ratio = kMostStoredRatio;
  // Called from the converting threads, one at a time: what is being done, bytes of it done and in
  // all. May be empty.
  std::function<void(const char* what, int64_t bytes_done, int64_t bytes_total)> progress = {};
  // If it returns true, converting ends soon with CANCELLED. May be empty.
  std::function<bool()> cancelled = {};
};

struct ConvertResult {
  backend::ExpertFormat format;
  int64_t num_experts = 0;
  int64_t dense_bytes = 0;  // as stored, source and destination alike
  int64_t bf16_bytes = 0;   // of all experts
  int64_t stored_bytes = 0;
  Bf12Survey survey;  // of all experts
};

// Reads every expert twice: first to find the room that lists of escapes need, so that each fits
// exactly, then to encode it.
// ALREADY_EXISTS: something is at the destination, or the source is converted already;
// FAILED_PRECONDITION: bf12 does not pay for this model (bf12_survey.h), or cannot hold one of its
// experts;
// RESOURCE_EXHAUSTED: the disk is full; CANCELLED; the source's errors. Whatever the error, nothing
// is left at the destination or beside it.
absl::StatusOr<ConvertResult> ConvertCheckpoint(const Checkpoint& source,
                                                const ConvertOptions& options);

}  // namespace moed::model
