#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <fstream>
#include <iterator>
#include <thread>

#include "tools/fabricctl/commands.hpp"
#include "tools/fabricctl/perftest.hpp"
#include "tools/fabricctl/table.hpp"
#include "tools/fabricctl/units.hpp"
#include "tools/fabricctl/views.hpp"
#include "tools/fabricctl/words.hpp"

namespace fabric::tools {
namespace {

const std::vector<std::string> kWords{"path", "ping", "port", "status", "route", "route-map"};

std::string complaint(std::string_view typed) {
  try {
    complete_word(typed, kWords, "object");
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Words, AbbreviationsMustBeUnambiguous) {
  EXPECT_EQ(complete_word("s", kWords, "object"), "status");
  EXPECT_EQ(complete_word("po", kWords, "object"), "port");
  EXPECT_EQ(complete_word("route", kWords, "object"),
            "route");  // a whole word, though another begins with it
  EXPECT_EQ(complaint("p"), "\"p\" is ambiguous; it may be path, ping, port");
  EXPECT_EQ(complaint("paths"),
            "unknown object \"paths\"; there are: path, ping, port, status, route, route-map");
  EXPECT_NE(complaint(""), "");
}

TEST(Table, ColumnsAlign) {
  Table table({"HOST", ">N", "STATE"});
  table.row({"h1", "7", {"up", Colour::good}});
  table.row({"häuschen", "1234", {"down", Colour::bad}});
  EXPECT_EQ(table.render(false),
            "HOST         N  STATE\n"
            "h1           7  up\n"
            "häuschen  1234  down\n");
  EXPECT_EQ(table.render(true),
            "HOST         N  STATE\n"
            "h1           7  \033[32mup\033[0m\n"
            "häuschen  1234  \033[31mdown\033[0m\n");
}

TEST(Units, AreHumane) {
  EXPECT_EQ(show_rate(0), "-");
  EXPECT_EQ(show_rate(100'000'000'000), "100 Gbit/s");
  EXPECT_EQ(show_rate(2'500'000'000), "2.5 Gbit/s");
  EXPECT_EQ(show_microseconds(12.34), "12.3 us");
  EXPECT_EQ(show_microseconds(4567), "4.57 ms");
  EXPECT_EQ(show_age(0.4), "now");
  EXPECT_EQ(show_age(192), "3 min 12 s");
  EXPECT_EQ(show_age(2 * 86400 + 3 * 3600), "2 d 3 h");
  EXPECT_EQ(show_ago(0.4), "just now");
  EXPECT_EQ(show_ago(12), "12 s ago");
  EXPECT_EQ(show_count(1, "hop"), "1 hop");
  EXPECT_EQ(show_count(2, "hop"), "2 hops");
}

/// Where perftest is installed, its own headings; it has them as they are printed.
std::string program(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Perftest, HeadingsAreThoseOfTheInstalledPerftest) {
  const std::string send_bw = program("/usr/bin/ib_send_bw"), send_lat = program("/usr/bin/ib_send_lat");
  if (send_bw.empty() || send_lat.empty()) GTEST_SKIP() << "perftest is not installed";
  // As C strings: what ends where the heading ends.
  const auto whole = [](const std::string& text) { return text + std::string(1, '\0'); };
  EXPECT_NE(send_bw.find(whole(bandwidth_heading(false))), std::string::npos);
  EXPECT_NE(send_bw.find(whole(bandwidth_heading(true))), std::string::npos);
  EXPECT_NE(send_lat.find(whole(latency_heading())), std::string::npos);
  EXPECT_NE(send_lat.find(perftest_rule()), std::string::npos);
}

TEST(Perftest, RowsAreFormattedAsPerftestDoes) {
  BandwidthRow bandwidth{65536, 5000, 12.5e9, 12.25e9, 186921};
  EXPECT_EQ(bandwidth_row(bandwidth, false),
            " 65536      5000             11920.93            11682.51\t\t   0.186921");
  EXPECT_EQ(bandwidth_row(bandwidth, true),
            " 65536      5000             100.00             98.00  \t\t   0.186921");
  LatencyRow latency{2, 1000, 1.85, 9.07, 1.94, 1.955, 0.126, 2.5, 9.07};
  EXPECT_EQ(
      latency_row(latency),
      " 2       1000          1.85           9.07         1.94     \t       1.96        \t0.13   \t\t2.50    "
      "\t\t9.07   ");
}

TEST(Perftest, RowsAreSplitIntoTheColumnsOfTheHeading) {
  const auto columns = [](const std::string& line) {
    std::istringstream in(line);
    return static_cast<std::size_t>(
        std::distance(std::istream_iterator<std::string>(in), std::istream_iterator<std::string>()));
  };
  EXPECT_EQ(columns(bandwidth_row({}, false)), 5u);
  EXPECT_EQ(columns(latency_row({})), 9u);
}

std::string view(std::string (*function)(const boost::json::object&, bool), const char* answer) {
  return function(boost::json::parse(answer).as_object(), false);
}

TEST(Views, PathShowsTheWayInUseFirst) {
  EXPECT_EQ(
      view(
          view_path,
          R"({"schema":1,"from":"h1","to":"h3","reachable":true,"why":"the other way is cut","seconds":130,"ways":[
    {"way":0,"chosen":false,"whole":false,"lid":6,"cost":30,"rate":100000000000,"hops":[
      {"from":"h1","out":1,"to":"h2","in":2,"cost":30,"rate":100000000000,"up":false}]},
    {"way":1,"chosen":true,"whole":true,"lid":7,"cost":20,"rate":100000000000,"hops":[
      {"from":"h1","out":2,"to":"h4","in":1,"cost":10,"rate":100000000000,"up":true},
      {"from":"h4","out":2,"to":"h3","in":1,"cost":10,"rate":100000000000,"up":true}]}]})"),
      "h1 to h3, in use: way 1, LID 7, 2 hops, cost 20, 100 Gbit/s\n"
      "  h1 port 2 -> h4 port 1\n"
      "  h4 port 2 -> h3 port 1\n"
      "h1 to h3, cut: way 0, LID 6, 1 hop, cost 30, 100 Gbit/s\n"
      "  h1 port 1 -> h2 port 2  down\n"
      "why: the other way is cut; for 2 min 10 s\n");
}

TEST(Views, AWayThatIsTheOnlyOneIsShownOnce) {
  EXPECT_EQ(view(view_path, R"({"schema":1,"from":"h1","to":"h2","reachable":true,"ways":[
    {"way":0,"chosen":true,"whole":true,"lid":4,"cost":10,"rate":100000000000,"hops":[
      {"from":"h1","out":1,"to":"h2","in":2,"cost":10,"rate":100000000000,"up":true}]},
    {"way":1,"chosen":true,"whole":true,"lid":5,"cost":10,"rate":100000000000,"hops":[
      {"from":"h1","out":1,"to":"h2","in":2,"cost":10,"rate":100000000000,"up":true}]}]})"),
            "h1 to h2, in use: way 0, LID 4, 1 hop, cost 10, 100 Gbit/s\n"
            "  h1 port 1 -> h2 port 2\n"
            "there is no other way\n");
}

TEST(Views, AnswersWithoutTheirMembersAreShownAllTheSame) {
  for (const auto function :
       {view_status, view_hosts, view_ports, view_cables, view_routes, view_path, view_log}) {
    EXPECT_NO_THROW(view(function, R"({"schema":1})"));
  }
}

TEST(Commands, ExitStatus) {
  const std::string nowhere = "/nonexistent/fabricd.sock";
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_fabricctl({"-j", "-s", nowhere, "status"}), kNoDaemon);
  EXPECT_EQ(run_fabricctl({"-s", nowhere, "bw", "h1", "-j"}), kNoDaemon);
  EXPECT_EQ(run_fabricctl({"-j", "p"}), kUsage);
  EXPECT_EQ(run_fabricctl({"bw", "-j"}), kUsage);
  EXPECT_EQ(run_fabricctl({"-j", "lat", "h1", "-n", "0"}), kUsage);
  // Each a line of JSON with a sentence.
  std::istringstream lines(testing::internal::GetCapturedStdout());
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto answer = boost::json::parse(line).as_object();
    EXPECT_EQ(answer.at("schema").as_int64(), 1) << line;
    EXPECT_GT(answer.at("error").as_string().size(), 10u) << line;
  }
  EXPECT_EQ(count, 5);
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_fabricctl({"--help"}), kDone);
  EXPECT_EQ(run_fabricctl({"path", "--help"}), kDone);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::HasSubstr("FROM is this host if left out"));
}

// What a client sees of a daemon that is killed: the kernel still connects it, and then closes.
TEST(Commands, ADaemonThatEndsWhileItIsAskedIsNoDaemon) {
  const std::string path = testing::TempDir() + fmt::format("fabricctl-test-{}.sock", getpid());
  sockaddr_un address{AF_UNIX, {}};
  ASSERT_LT(path.size(), sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  std::thread dying([&] { close(accept(listener, nullptr, nullptr)); });
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_fabricctl({"-j", "-s", path, "status"}), kNoDaemon);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::HasSubstr("no fabricd answers"));
  dying.join();
  close(listener);
  unlink(path.c_str());
}

}  // namespace
}  // namespace fabric::tools
