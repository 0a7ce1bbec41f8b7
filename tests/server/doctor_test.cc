#include "server/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace moed::server {
namespace {

namespace fs = std::filesystem;

class DoctorTest : public testing::Test {
 protected:
  DoctorTest() { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text << "\n";
  }
  Finding Find(const std::vector<Finding>& findings, const std::string& what) {
    const auto found = std::find_if(findings.begin(), findings.end(),
                                    [&](const Finding& finding) { return finding.what == what; });
    return found == findings.end() ? Finding{Finding::Kind::kProblem, "missing", "", ""} : *found;
  }

  const std::string root_ = testing::TempDir() + "/doctor_test_root";
};

TEST_F(DoctorTest, AMissingDriverIsAProblemOnlyWithCuda) {
  Options options;
  EXPECT_EQ(Find(ExamineMachine(options, root_), "GPU driver").kind, Finding::Kind::kOk);
  options.device = Device::kCuda;
  const Finding missing = Find(ExamineMachine(options, root_), "GPU driver");
  EXPECT_EQ(missing.kind, Finding::Kind::kProblem);
  EXPECT_FALSE(missing.remedy.empty());
  Write("/proc/driver/nvidia/version", "NVRM version: 580.0");
  EXPECT_EQ(Find(ExamineMachine(options, root_), "GPU driver").kind, Finding::Kind::kOk);
}

TEST_F(DoctorTest, HugePagesThatAreOffGetAdvice) {
  Write("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]");
  EXPECT_EQ(Find(ExamineMachine({}, root_), "huge pages").kind, Finding::Kind::kAdvice);
  Write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
  EXPECT_EQ(Find(ExamineMachine({}, root_), "huge pages").kind, Finding::Kind::kOk);
}

TEST_F(DoctorTest, FindsTheDemoModelWellAndNamesWhatIsWrongWithOthers) {
  Options options;
  options.model = MOED_DEMO_MODEL;
  for (const Finding& finding : ExamineModel(options)) {
    EXPECT_EQ(finding.kind, Finding::Kind::kOk) << finding.what << ": " << finding.found;
  }
  options.model = "/no/such/checkpoint";
  std::ostringstream out;
  EXPECT_EQ(RunDoctor(options, out), 1);
  EXPECT_THAT(out.str(),
              testing::AllOf(testing::HasSubstr("PROBLEM  checkpoint"),
                             testing::HasSubstr("/no/such/checkpoint"), testing::HasSubstr("-> ")));
}

}  // namespace
}  // namespace moed::server
