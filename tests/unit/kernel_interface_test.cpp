// In a network namespace of its own, with a real TUN device; needs root.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <sstream>

#include "fabricd/kernel/interface.hpp"

namespace fabric::daemon {
namespace {

constexpr auto kFabric = KernelInterface::RouteKind::fabric,
               kUnreachable = KernelInterface::RouteKind::unreachable;

/// What a command prints, without trailing spaces.
std::string output(const std::string& command) {
  std::string text;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  for (int c; (c = std::fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  pclose(pipe);
  std::string trimmed;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    line.erase(line.find_last_not_of(' ') + 1);
    trimmed += line + "\n";
  }
  return trimmed;
}

class Kernel : public testing::Test {
 protected:
  void SetUp() override {
    if (unshare(CLONE_NEWNET) != 0) GTEST_SKIP() << "no right to make a network namespace";
    tun_ = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    ifreq request{};
    std::strcpy(request.ifr_name, "fab0");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    ASSERT_EQ(ioctl(tun_, TUNSETIFF, &request), 0) << std::strerror(errno);
    index_ = if_nametoindex("fab0");
  }
  void TearDown() override { close(tun_); }

  static KernelInterface::Address address(const char* text, unsigned length) {
    const auto address = *parse_address(text);
    return {address, static_cast<std::uint8_t>(is_ipv4(address) ? length + 96 : length)};
  }

  int tun_ = -1;
  unsigned index_ = 0;
};

TEST_F(Kernel, AddressesAndRoutesComeAndGo) {
  {
    KernelInterface interface(index_, "fab0");
    interface.bring_up(9000);
    EXPECT_THAT(output("ip -o link show fab0"),
                testing::AllOf(testing::HasSubstr("mtu 9000"), testing::HasSubstr("UP")));
    EXPECT_EQ(output("ip -o -6 addr show dev fab0"), "") << "a link-local address that nobody can reach";

    EXPECT_THAT(interface.set_addresses({address("10.88.0.3", 16), address("fd88:fab::3", 64)}),
                testing::IsEmpty());
    EXPECT_THAT(output("ip -o addr show dev fab0"),
                testing::AllOf(testing::HasSubstr("10.88.0.3/16"), testing::HasSubstr("fd88:fab::3/64"),
                               testing::Not(testing::HasSubstr("tentative"))));

    const routing::Prefix one = *parse_prefix("192.168.7.0/24"), two = *parse_prefix("2001:db8:7::/48"),
                          all = *parse_prefix("0.0.0.0/0");
    EXPECT_THAT(interface.set_routes({{one, kFabric}, {two, kFabric}, {all, kFabric}}), testing::IsEmpty());
    EXPECT_EQ(output("ip route show proto 88"),
              "default dev fab0 scope link src 10.88.0.3 metric 8800\n"
              "192.168.7.0/24 dev fab0 scope link src 10.88.0.3 metric 8800\n");
    EXPECT_THAT(output("ip -6 route show proto 88"),
                testing::HasSubstr("2001:db8:7::/48 dev fab0 src fd88:fab::3 metric 8800"));

    EXPECT_THAT(interface.set_routes({{one, kUnreachable}, {two, kUnreachable}}), testing::IsEmpty());
    EXPECT_EQ(output("ip route show proto 88"), "unreachable 192.168.7.0/24 metric 8800\n");
    EXPECT_THAT(output("ip -6 route show proto 88"), testing::HasSubstr("unreachable 2001:db8:7::/48"));
    EXPECT_THAT(interface.set_routes({{two, kFabric}}), testing::IsEmpty());
    EXPECT_EQ(output("ip route show proto 88"), "");
    EXPECT_THAT(output("ip -6 route show proto 88"), testing::HasSubstr("2001:db8:7::/48 dev fab0"));
    EXPECT_THAT(interface.set_addresses({address("10.88.0.4", 16)}), testing::IsEmpty());
    EXPECT_THAT(
        output("ip -o addr show dev fab0"),
        testing::AllOf(testing::HasSubstr("10.88.0.4/16"), testing::Not(testing::HasSubstr("10.88.0.3")),
                       testing::Not(testing::HasSubstr("fd88"))));
  }
  EXPECT_EQ(output("ip -o addr show dev fab0"), "");
  EXPECT_EQ(output("ip -6 route show proto 88"), "");
}

TEST_F(Kernel, WhatTheKernelRefusesIsReportedAndTriedAgain) {
  KernelInterface interface(index_, "fab0");
  interface.bring_up(9000);
  output("sysctl -qw net.ipv6.conf.fab0.disable_ipv6=1");
  const std::set<KernelInterface::Address> wanted{address("10.88.0.3", 16), address("fd88:fab::3", 64)};
  EXPECT_THAT(interface.set_addresses(wanted),
              testing::ElementsAre(testing::StartsWith("cannot add address fd88:fab::3 to fab0: ")));
  EXPECT_THAT(output("ip -o addr show dev fab0"), testing::HasSubstr("10.88.0.3/16"));
  output("sysctl -qw net.ipv6.conf.fab0.disable_ipv6=0");
  EXPECT_THAT(interface.set_addresses(wanted), testing::IsEmpty());
  EXPECT_THAT(output("ip -o addr show dev fab0"), testing::HasSubstr("fd88:fab::3/64"));
}

TEST_F(Kernel, AnInterfaceThatIsNotThereIsASentence) {
  KernelInterface interface(index_ + 100, "fab9");
  try {
    interface.bring_up(9000);
    FAIL();
  } catch (const KernelError& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("cannot bring up fab9 with an MTU of 9000: "));
  }
}

}  // namespace
}  // namespace fabric::daemon
