// The moed binary as a child process, as scripts and Kubernetes run it: the one that lies beside
// the test's own, in a build folder or a bundle.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace moed::server {

class DaemonProcess {
 public:
  // On free ports unless `arguments` name others; its stderr goes to a file. `environment`:
  // NAME=value, added to the test's own.
  explicit DaemonProcess(std::vector<std::string> arguments,
                         std::vector<std::string> environment = {});
  // Kills it if it still runs.
  ~DaemonProcess();

  // The gRPC address of its line on stdout; empty if it left before.
  std::string WaitUntilListening();
  // That line whole, and the address in it behind `key` ("grpc=").
  std::string WaitUntilListeningLine();
  static std::string AddressIn(const std::string& line, const std::string& key);
  void Signal(int signal);
  pid_t pid() const { return pid_; }
  // True once WaitForExit would not wait.
  bool HasEnded() const;
  // The exit code, or 128 + the signal that ended it.
  int WaitForExit();
  // What it has written to stderr so far.
  std::string Log() const;
  // The path of a file in the folder of the test's own binary.
  static std::string BesideTest(const std::string& name);

 private:
  std::string log_path_;
  pid_t pid_ = -1;
  int stdout_fd_ = -1;
};

}  // namespace moed::server
