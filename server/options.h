// What the user asked for: every flag of the daemon with its default, validated. A value; main
// makes it and Server keeps it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/checkpoint.h"
#include "runtime/model/cold_path_choice.h"
#include "runtime/model/expert_format_choice.h"
#include "server/log.h"
#include "server/tls_credentials.h"

namespace moed::server {

enum class Device : uint8_t { kAuto, kCpu, kCuda };

// A port that is not opened.
inline constexpr int kNoPort = -1;

struct Options {
  // Checkpoint.
  std::string model;              // a directory; empty: the demo model
  std::string served_model_name;  // empty: the directory's name
  model::LoadFormat load_format = model::LoadFormat::kAuto;
  uint64_t seed = 0;  // of dummy weights

  // Network.
  std::string host = "127.0.0.1";
  int port = 8500;             // 0: any free one
  int metrics_port = 8501;     // 0: any free one
  int health_port = kNoPort;   // plain text, health alone
  int gateway_port = kNoPort;  // plain text, VllmEngine alone, without keys
  int admin_port = kNoPort;    // Admin alone
  std::string admin_host = "127.0.0.1";
  int64_t max_message_bytes = 64 << 20;
  int64_t max_metadata_bytes = 16 << 10;
  double max_connection_age_seconds = 0;  // 0: none
  double drain_seconds = 30;
  double watchdog_seconds = 60;  // 0: a hang ends nothing

  // Who gets in.
  TlsFiles tls;          // of the gRPC port, and of the admin port beyond loopback
  TlsFiles metrics_tls;  // of the metrics port
  int tls_reload_seconds = 60;
  std::string api_key_file;       // empty: no keys
  std::string admin_key_file;     // likewise, for the admin port
  std::string metrics_auth_file;  // empty: everybody

  // Batching and admission.
  int64_t max_model_len = 0;  // 0: the checkpoint's
  int max_num_seqs = 64;
  int max_num_batched_tokens = 0;  // 0: what the device streams layers well with
  int64_t max_queued_requests = 1024;
  int64_t max_queued_tokens = 1 << 20;

  // Memory and compute.
  Device device = Device::kAuto;
  double gpu_memory_utilization = 0.9;
  int cpu_threads = 0;         // 0: by affinity and cgroup quota
  int64_t kv_cache_bytes = 0;  // 0: chosen from what memory is left
  model::ExpertFormatPreference expert_format = model::ExpertFormatPreference::kAuto;
  std::string expert_budget = "auto";  // see model::ParseExpertBudget
  std::string expert_policy = "recency-frequency";
  model::ColdPathPreference cold_path = model::ColdPathPreference::kAuto;
  std::string max_expert_budget;  // what SetBudget may grow to; empty: the budget
  std::string hot_set_file;       // where the hot set is kept between runs; empty: nowhere
  double hot_set_interval_seconds = 60;
  double hot_set_load_seconds = 60;  // a start waits no longer for its residents
  std::string record_routing;        // a file to record every step's routing into; empty: none

  std::string log_level = "info";
  LogFormat log_format = LogFormat::kText;
};

// What a command line means: options to serve with, or a text to print before leaving.
struct ParsedCommandLine {
  std::optional<Options> options;
  bool check_only = false;  // --check-config
  std::string text;         // help, version or what is wrong
  int exit_code = 0;
};

// `arguments` without the program's name. Each flag --some-flag can also be the environment
// variable MOED_SOME_FLAG or, in the file named by --config, the line `some-flag = value`; the
// command line wins over the environment, which wins over the file.
ParsedCommandLine ParseCommandLine(const std::vector<std::string>& arguments);

}  // namespace moed::server
