#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "tools/lab/error.hpp"
#include "tools/lab/process.hpp"

namespace fabric::tools::lab {
namespace {

using std::chrono::milliseconds;

class LabProcess : public ::testing::Test {
 protected:
  LabProcess() {
    char name[] = "/tmp/lab_process_XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~LabProcess() override { std::filesystem::remove_all(directory_); }

  Command command(std::vector<std::string> arguments, const std::string& host) {
    Command command;
    command.arguments = std::move(arguments);
    command.environment = {{kMark, lab_ + "/" + host}};
    command.log = directory_ / "log";
    return command;
  }

  std::filesystem::path directory_;
  const std::string lab_ = "unit" + std::to_string(getpid());
};

TEST_F(LabProcess, MembersAreFoundByTheirMarkAndDie) {
  const ProcessId first = spawn(command({"sleep", "1000"}, "h1"));
  const ProcessId second = spawn(command({"sh", "-c", "sleep 1000 & wait"}, "h12"));
  EXPECT_TRUE(alive(first));
  const auto of_h1 = find_members(lab_, "h1", {});
  ASSERT_EQ(of_h1.size(), 1u);
  EXPECT_EQ(of_h1[0].pid, first.pid);
  EXPECT_FALSE(wait_for_end({first}, milliseconds(0)));

  for (auto all = find_members(lab_, std::nullopt, {}); !all.empty();
       all = find_members(lab_, std::nullopt, {})) {
    for (const ProcessId& process : all) send_signal(process, SIGKILL);
    ASSERT_TRUE(wait_for_end(all, milliseconds(10000)));
  }
  EXPECT_FALSE(alive(first));
  EXPECT_FALSE(alive(second));
}

TEST_F(LabProcess, RecycledNumberIsAnotherProcess) {
  const ProcessId process = spawn(command({"sleep", "1000"}, "h1"));
  ProcessId before = process;
  --before.start;  // whoever had this number earlier
  EXPECT_FALSE(alive(before));
  send_signal(before, SIGKILL);
  EXPECT_FALSE(wait_for_end({process}, milliseconds(20)));
  EXPECT_TRUE(alive(process));
  send_signal(process, SIGKILL);
  EXPECT_TRUE(wait_for_end({process}, milliseconds(10000)));
}

TEST_F(LabProcess, PidFile) {
  EXPECT_FALSE(read_pid_file(directory_ / "pid").has_value());
  write_pid_file(directory_ / "pid", {12, 345});
  const auto read = read_pid_file(directory_ / "pid");
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->pid, 12);
  EXPECT_EQ(read->start, 345u);
}

TEST_F(LabProcess, OutputGoesToTheLogAndFailuresToTheCaller) {
  const ProcessId process = spawn(command({"sh", "-c", "echo out; echo err >&2"}, "h1"));
  ASSERT_TRUE(wait_for_end({process}, milliseconds(10000)));
  std::ifstream in(directory_ / "log");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), "out\nerr\n");
  EXPECT_THROW(spawn(command({"/no/such/program"}, "h1")), Error);
  Command broken = command({"true"}, "h1");
  broken.enter = [] { throw Error("cannot enter"); };
  EXPECT_THROW(spawn(broken), Error);
}

}  // namespace
}  // namespace fabric::tools::lab
