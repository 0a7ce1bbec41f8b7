#include "tests/integration/daemon_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace moed::server {
namespace {

// As exec wants them; valid as long as `strings`.
std::vector<char*> PointersTo(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

DaemonProcess::DaemonProcess(std::vector<std::string> arguments,
                             std::vector<std::string> environment) {
  static int count = 0;
  log_path_ = absl::StrCat(testing::TempDir(), "/moed_daemon_", getpid(), "_", count++, ".log");
  const std::string binary = BesideTest("moed");
  std::vector<std::string> all = {binary, "--port=0", "--metrics-port=0"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.push_back(*variable);
  }
  const std::vector<char*> argv = PointersTo(all);
  const std::vector<char*> envp = PointersTo(environment);

  int out[2];
  EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log_path_.c_str(),
                                   O_CREAT | O_WRONLY | O_TRUNC, 0600);
  EXPECT_EQ(posix_spawn(&pid_, binary.c_str(), &actions, nullptr, argv.data(), envp.data()), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(out[1]);
  stdout_fd_ = out[0];
}

DaemonProcess::~DaemonProcess() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    WaitForExit();
  }
  close(stdout_fd_);
  std::remove(log_path_.c_str());
}

std::string DaemonProcess::WaitUntilListening() {
  return AddressIn(WaitUntilListeningLine(), "grpc=");
}

std::string DaemonProcess::WaitUntilListeningLine() {
  std::string line;
  for (char c; read(stdout_fd_, &c, 1) == 1 && c != '\n';) line += c;
  return line;
}

std::string DaemonProcess::AddressIn(const std::string& line, const std::string& key) {
  const size_t begin = line.find(key);
  if (begin == std::string::npos) return "";
  return line.substr(begin + key.size(), line.find(' ', begin) - begin - key.size());
}

void DaemonProcess::Signal(int signal) { kill(pid_, signal); }

bool DaemonProcess::HasEnded() const {
  siginfo_t ended = {};
  return waitid(P_PID, pid_, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == pid_;
}

int DaemonProcess::WaitForExit() {
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string DaemonProcess::Log() const {
  std::stringstream text;
  text << std::ifstream(log_path_).rdbuf();
  return text.str();
}

std::string DaemonProcess::BesideTest(const std::string& name) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / name).string();
}

}  // namespace moed::server
