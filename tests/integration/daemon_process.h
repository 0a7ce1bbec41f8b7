// The moed binary as a child process, as scripts and Kubernetes run it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace moed::server {

class DaemonProcess {
 public:
  // On free ports unless `arguments` name others; its stderr goes to a file.
  explicit DaemonProcess(std::vector<std::string> arguments);
  // Kills it if it still runs.
  ~DaemonProcess();

  // The gRPC address of its line on stdout; empty if it left before.
  std::string WaitUntilListening();
  // That line whole, and the address in it behind `key` ("grpc=").
  std::string WaitUntilListeningLine();
  static std::string AddressIn(const std::string& line, const std::string& key);
  void Signal(int signal);
  pid_t pid() const { return pid_; }
  // The exit code, or 128 + the signal that ended it.
  int WaitForExit();
  // What it has written to stderr so far.
  std::string Log() const;

 private:
  std::string log_path_;
  pid_t pid_ = -1;
  int stdout_fd_ = -1;
};

}  // namespace moed::server
