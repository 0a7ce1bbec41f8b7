// moed convert and what it writes, as an operator uses them: convert the demo model, serve it, and
// look at it with moedctl.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

struct Finished {
  int exit_code = 0;
  std::string output;
};

Finished RunShell(const std::string& command) {
  FILE* pipe = popen(absl::StrCat("{ ", command, "; } 2>&1").c_str(), "r");
  Finished finished;
  std::array<char, 512> buffer;
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) {
    finished.output += buffer.data();
  }
  finished.exit_code = WEXITSTATUS(pclose(pipe));
  return finished;
}

class ConvertTest : public testing::Test {
 protected:
  ConvertTest() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ConvertTest() override { fs::remove_all(folder_); }

  std::string Convert(const std::string& destination) {
    return absl::StrCat(MOED_BINARY, " convert ", MOED_DEMO_MODEL, " ", folder_, "/", destination);
  }

  std::vector<int32_t> GreedyTokens(const std::string& address) {
    const auto stub =
        v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    v1::GenerateRequest request = TokensRequest(0, 48);
    request.set_text("ROMEO:\n");
    request.mutable_sampling()->set_temperature(0);
    std::vector<int32_t> tokens;
    Eventually([&] {
      const StreamOutcome outcome = Generate(*stub, request);
      tokens.assign(outcome.tokens.begin(), outcome.tokens.end());
      return outcome.status.ok();
    });
    return tokens;
  }

  const std::string folder_ = testing::TempDir() + "/convert_test";
};

TEST_F(ConvertTest, TheConvertedDemoModelIsServedWithTheSameTokens) {
  const Finished converted = RunShell(Convert("bf12"));
  ASSERT_EQ(converted.exit_code, 0) << converted.output;
  EXPECT_THAT(converted.output, AllOf(HasSubstr("192 experts"), HasSubstr("GB/s")));
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string& model : {std::string(MOED_DEMO_MODEL), folder_ + "/bf12"}) {
    DaemonProcess daemon({"--model=" + model, "--expert-budget=33%"});
    const std::string address = daemon.WaitUntilListening();
    tokens.push_back(GreedyTokens(address));
    const Finished info = RunShell(absl::StrCat(MOEDCTL_BINARY, " --address ", address, " info"));
    const bool bf12 = tokens.size() == 2;
    EXPECT_THAT(info.output, HasSubstr(bf12 ? "(bf12, 79.7 % of bf16)" : "(bf16)"));
    EXPECT_THAT(daemon.Log(), HasSubstr(bf12 ? "expert format: bf12, 79.7 %" : "moed convert"));
  }
  EXPECT_EQ(tokens[0].size(), 48u);
  EXPECT_EQ(tokens[1], tokens[0]);
}

TEST_F(ConvertTest, AnExistingPathAndAFullDiskAreErrorsThatLeaveNothing) {
  // A limit of file sizes in KiB stands for the full disk.
  const Finished full = RunShell("ulimit -f 700; " + Convert("full"));
  EXPECT_EQ(full.exit_code, 1) << full.output;
  EXPECT_THAT(full.output, HasSubstr("cannot write"));
  EXPECT_THAT(std::set<fs::path>(fs::directory_iterator(folder_), {}), IsEmpty());
  fs::create_directory(folder_ + "/there");
  const Finished there = RunShell(Convert("there"));
  EXPECT_EQ(there.exit_code, 1);
  EXPECT_THAT(there.output, HasSubstr("exists already"));
  EXPECT_TRUE(fs::is_empty(folder_ + "/there"));
  EXPECT_EQ(
      RunShell(absl::StrCat(MOED_BINARY, " convert /no/such/model ", folder_, "/x")).exit_code, 1);
  EXPECT_EQ(RunShell(absl::StrCat(MOED_BINARY, " convert")).exit_code, 2);
}

TEST_F(ConvertTest, Bf12FromUnconvertedFilesNamesConvertUnlessAllExpertsFit) {
  const Finished refused = RunShell(absl::StrCat(
      MOED_BINARY, " --port 0 --metrics-port 0 --expert-format bf12 --expert-budget 50% --model ",
      MOED_DEMO_MODEL));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output, HasSubstr("moed convert"));
  DaemonProcess daemon({"--expert-format=bf12"});
  EXPECT_EQ(GreedyTokens(daemon.WaitUntilListening()).size(), 48u);
  EXPECT_THAT(daemon.Log(), HasSubstr("expert format: bf12"));
}

}  // namespace
}  // namespace moed::server
