// The default route of a gateway and the kernel's switches, in a network namespace of the test's own; needs
// root.
#include "fabricd/kernel/upstream.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <fstream>

#include "fabricd/kernel/settings.hpp"

namespace fabric::daemon {
namespace {

void run(const std::string& command) {
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

class UpstreamTest : public testing::Test {
 protected:
  void SetUp() override {
    if (unshare(CLONE_NEWNET) != 0) GTEST_SKIP() << "no right to make a network namespace";
    run("ip link set lo up && ip link add lan0 type veth peer lan0-far && ip link add other type veth peer "
        "other-far && "
        "for name in lan0 lan0-far other other-far; do ip link set $name up; done && "
        "ip address add 192.0.2.1/24 dev lan0 && ip address add 198.51.100.1/24 dev other && "
        "ip -6 address add 2001:db8::1/64 dev lan0 nodad");
  }

  /// Does something to the routes and returns what the watch then says; the test hangs if it says nothing.
  Upstream after(UpstreamWatch& watch, const std::string& command) {
    run(command);
    const unsigned before = changes_;
    while (changes_ == before) io_.run_one();
    return watch.now();
  }

  boost::asio::io_context io_;
  unsigned changes_ = 0;
};

const IpAddress kRouter4 = *parse_address("192.0.2.254"), kRouter6 = *parse_address("2001:db8::fe");

TEST_F(UpstreamTest, DefaultRouteComesAndGoes) {
  UpstreamWatch watch(io_, "lan0", [this] { ++changes_; });
  EXPECT_EQ(watch.now(), Upstream{});
  EXPECT_EQ(after(watch, "ip route add default via 192.0.2.254").ipv4, (DefaultRoute{true, {kRouter4}}));
  EXPECT_FALSE(watch.now().ipv6.present);
  EXPECT_EQ(after(watch, "ip -6 route add default via 2001:db8::fe").ipv6, (DefaultRoute{true, {kRouter6}}));
  EXPECT_EQ(after(watch, "ip route del default").ipv4, DefaultRoute{});
  EXPECT_TRUE(watch.now().ipv6.present);
}

TEST_F(UpstreamTest, OnlyRoutesThatLeadOutOfTheFabricCount) {
  UpstreamWatch watch(io_, "lan0", [this] { ++changes_; });
  // None of these is one; the last is, and its message comes after theirs.
  run("ip route add default dev other proto 88 metric 8800");
  run("ip route add unreachable default metric 4000");
  run("ip route add default via 192.0.2.254 table 100");
  run("ip route add 10.0.0.0/8 via 192.0.2.254");
  EXPECT_EQ(after(watch, "ip route add default via 198.51.100.254 metric 10").ipv4, (DefaultRoute{true, {}}))
      << "by another interface: there, but with no router on the LAN";
  EXPECT_EQ(changes_, 1u);
}

TEST_F(UpstreamTest, EveryHopOfSeveral) {
  UpstreamWatch watch(io_, "lan0", [this] { ++changes_; });
  const auto route =
      after(watch,
            "ip route add default nexthop via 192.0.2.253 nexthop via 192.0.2.254 nexthop via 198.51.100.9")
          .ipv4;
  EXPECT_EQ(route, (DefaultRoute{true, {*parse_address("192.0.2.253"), kRouter4}}));
}

TEST_F(UpstreamTest, ARouteWithoutCarrierIsNone) {
  run("ip route add default via 192.0.2.254 && ip -6 route add default via 2001:db8::fe");
  UpstreamWatch watch(io_, "lan0", [this] { ++changes_; });
  EXPECT_TRUE(watch.now().ipv4.present && watch.now().ipv6.present);
  run("ip link set lan0-far down");
  while (watch.now() != Upstream{}) io_.run_one();
  run("ip link set lan0-far up");
  while (!watch.now().ipv4.present || !watch.now().ipv6.present) io_.run_one();
}

TEST_F(UpstreamTest, ProbesSayWhetherItLeadsAnywhere) {
  run("ip link add name p0 type veth peer name p1 && ip link set p0 up && ip address add 203.0.113.1/24 dev "
      "p0");
  // The far end in a namespace would do; a second address of this one answers by the loopback only, so this
  // probe has nobody to answer it.
  UpstreamProbe silent(io_, "p0", {*parse_address("203.0.113.2")}, [this] { ++changes_; });
  EXPECT_FALSE(silent.answers(true));
  EXPECT_TRUE(silent.answers(false)) << "no target, no doubt";
}

TEST_F(UpstreamTest, SwitchesAreAsTheyWereAfterwards) {
  const std::string name = "ipv4/conf/lan0/rp_filter";
  const std::string before = KernelSettings::get(name);
  {
    KernelSettings settings;
    EXPECT_EQ(settings.set(name, "2"), "");
    EXPECT_EQ(KernelSettings::get(name), "2");
    EXPECT_EQ(settings.set("ipv4/conf/lan0/forwarding", "1"), "");
    std::ofstream("/proc/sys/net/ipv4/conf/lan0/forwarding") << "0";  // somebody else's wish
    EXPECT_EQ(settings.set("ipv4/conf/nobody/forwarding", "1"), "");
  }
  EXPECT_EQ(KernelSettings::get(name), before);
  EXPECT_EQ(KernelSettings::get("ipv4/conf/lan0/forwarding"), "0");
}

}  // namespace
}  // namespace fabric::daemon
