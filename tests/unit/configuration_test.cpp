#include "fabricd/configuration.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fabric::daemon {
namespace {

using namespace std::chrono_literals;

/// The complaints about a file, as an operator sees them.
std::string complaints(std::string_view text) {
  try {
    parse_configuration(text, "f.toml");
  } catch (const ConfigurationError& error) {
    return error.what();
  }
  return "";
}

TEST(Configuration, EmptyFileHasTheDefaults) {
  const Configuration c = parse_configuration("", "f.toml");
  EXPECT_EQ(c.network.interface, "fab0");
  EXPECT_EQ(c.network.mtu, 65520u);
  EXPECT_EQ(to_string(c.network.ipv4), "10.88.0.0/16");
  EXPECT_EQ(to_string(c.network.ipv6), "fd88:fab::/64");
  EXPECT_TRUE(c.routing.multipath);
  EXPECT_TRUE(c.ports.wanted("mlx5_0", 2));
  EXPECT_EQ(c.ports.cost_of("mlx5_0", 2), 0u);
}

TEST(Configuration, EveryKeyIsRead) {
  const Configuration c = parse_configuration(R"(
[host]
name = "bode"
priority = 15
index = 7
[network]
interface = "ring0"
mtu = 9000
ipv4 = "172.20.4.0/22"
ipv6 = "fd00:1::/64"
prefixes = ["192.168.7.0/24", "2001:db8:7::/48"]
[routing]
multipath = false
[timers]
heartbeat = "2ms"
keepalive = "20ms"
dead = "100ms"
[ports]
use = ["mlx5_0", "mlx5_1/2"]
ignore = ["mlx5_0/2"]
cost = { "mlx5_0/1" = 20, "mlx5_1" = 7 }
[subnet]
m_key = "0x1f3a5c7e9b2d4f60"
[forwarder]
receive_buffers = 64
send_buffers = 128
spin = "0us"
reorder = "5ms"
[log]
level = "debug"
)",
                                              "f.toml");
  EXPECT_EQ(c.host.name, "bode");
  EXPECT_EQ(c.host.priority, 15);
  EXPECT_EQ(c.host.index, 7);
  EXPECT_EQ(c.network.interface, "ring0");
  EXPECT_EQ(c.network.mtu, 9000u);
  EXPECT_EQ(to_string(c.network.ipv4), "172.20.4.0/22");
  EXPECT_EQ(to_string(c.network.ipv6), "fd00:1::/64");
  ASSERT_EQ(c.network.prefixes.size(), 2u);
  EXPECT_EQ(to_string(c.network.prefixes[0]), "192.168.7.0/24");
  EXPECT_EQ(to_string(c.network.prefixes[1]), "2001:db8:7::/48");
  EXPECT_FALSE(c.routing.multipath);
  EXPECT_EQ(c.timers.heartbeat, 2ms);
  EXPECT_EQ(c.timers.keepalive, 20ms);
  EXPECT_EQ(c.timers.dead, 100ms);
  EXPECT_TRUE(c.ports.wanted("mlx5_0", 1));
  EXPECT_FALSE(c.ports.wanted("mlx5_0", 2));
  EXPECT_FALSE(c.ports.wanted("mlx5_1", 1));
  EXPECT_TRUE(c.ports.wanted("mlx5_1", 2));
  EXPECT_EQ(c.ports.cost_of("mlx5_0", 1), 20u);
  EXPECT_EQ(c.ports.cost_of("mlx5_1", 2), 7u);
  EXPECT_EQ(c.subnet.m_key, 0x1F3A5C7E9B2D4F60u);
  EXPECT_EQ(c.forwarder.receive_buffers, 64u);
  EXPECT_EQ(c.forwarder.send_buffers, 128u);
  EXPECT_EQ(c.forwarder.spin, 0us);
  EXPECT_EQ(c.forwarder.reorder, 5ms);
  EXPECT_EQ(c.log.level, "debug");
}

TEST(Configuration, GatewayIsRead) {
  const Configuration c = parse_configuration(R"(
[gateway]
interface = "eth0"
addresses = ["192.168.0.1/24", "2001:db8::1/64"]
vrid = 7
priority = 254
version = 2
interval = "3s"
preempt = false
preempt_delay = "500ms"
accept = true
checksum = "message"
track = ["ring"]
originate = "all"
probe = ["192.0.2.1"]
)",
                                              "f.toml");
  EXPECT_EQ(c.gateway.interface, "eth0");
  ASSERT_EQ(c.gateway.addresses.size(), 2u);
  EXPECT_EQ(to_string(c.gateway.addresses[0].address), "192.168.0.1");
  EXPECT_EQ(c.gateway.addresses[0].length, 120);
  EXPECT_EQ(to_string(c.gateway.addresses[1].address), "2001:db8::1");
  EXPECT_EQ(c.gateway.addresses[1].length, 64);
  EXPECT_EQ(c.gateway.vrid, 7);
  EXPECT_EQ(c.gateway.priority, 254);
  EXPECT_EQ(c.gateway.version, 2);
  EXPECT_EQ(c.gateway.interval, 3s);
  EXPECT_FALSE(c.gateway.preempt);
  EXPECT_EQ(c.gateway.preempt_delay, 500ms);
  EXPECT_TRUE(c.gateway.accept);
  EXPECT_EQ(c.gateway.checksum, Configuration::Gateway::Checksum::message);
  EXPECT_TRUE(c.gateway.track_ring);
  EXPECT_FALSE(c.gateway.track_default_route);
  EXPECT_TRUE(c.gateway.originate_all);
  ASSERT_EQ(c.gateway.probe.size(), 1u);
}

TEST(Configuration, GatewayIsJudged) {
  EXPECT_EQ(
      complaints("[gateway]\ninterface = \"eth0\"\n"),
      "f.toml:2:13: `gateway.interface` needs `gateway.addresses`, the virtual ones that the pair shares");
  EXPECT_EQ(complaints("[gateway]\naddresses = [\"10.0.0.1\"]\n"),
            "f.toml:2:13: `gateway.addresses` needs `gateway.interface`, the one on the LAN\n"
            "f.toml:2:14: `gateway.addresses` must be addresses with the length of their network: "
            "\"192.168.0.1/24\", \"2001:db8::1/64\"");
  EXPECT_EQ(complaints("[gateway]\nversion = 2\ninterval = \"1500ms\"\n"),
            "f.toml:3:12: `gateway.interval` must be whole seconds with version 2, which cannot say less");
  EXPECT_EQ(
      complaints("[gateway]\ninterval = \"15ms\"\n"),
      "f.toml:2:12: `gateway.interval` must be a multiple of \"10ms\" up to \"40950ms\" with version 3");
  EXPECT_EQ(parse_configuration("[gateway]\nversion = 2\n", "f.toml").gateway.interval, 1s);
  const Configuration untracked = parse_configuration("[gateway]\ntrack = []\n", "f.toml");
  EXPECT_FALSE(untracked.gateway.track_ring || untracked.gateway.track_default_route);
}

TEST(Configuration, UnknownKeyIsAnErrorWithPlaceAndSuggestion) {
  EXPECT_EQ(complaints("[network]\nmtuu = 9000\n"),
            "f.toml:2:1: unknown key `network.mtuu`; did you mean `mtu`?");
  EXPECT_EQ(complaints("[netwrk]\nmtu = 9000\n"),
            "f.toml:1:2: unknown key `netwrk`; did you mean `network`?");
  EXPECT_EQ(complaints("[log]\n  colour = true\n"),
            "f.toml:2:3: unknown key `log.colour`; known here: level");
}

TEST(Configuration, RangesAndTypesAreChecked) {
  EXPECT_EQ(complaints("[network]\nmtu = 100\n"), "f.toml:2:7: `network.mtu` must be from 1280 to 65520");
  EXPECT_EQ(complaints("[network]\nmtu = \"9000\"\n"),
            "f.toml:2:7: `network.mtu` must be a whole number, not a text");
  for (const char* key : {"", "0x", "0x0", "7", "0x1ffffffffffffffff", "0x12 "})
    EXPECT_EQ(complaints("[subnet]\nm_key = \"" + std::string(key) + "\"\n"),
              "f.toml:2:9: `subnet.m_key` must be a hexadecimal number of 64 bits, and not 0: "
              "\"0x1f3a5c7e9b2d4f60\"");
  EXPECT_EQ(complaints("[host]\npriority = 16\n"), "f.toml:2:12: `host.priority` must be from 0 to 15");
  EXPECT_EQ(complaints("[network]\nipv4 = \"10.88.0.1/16\"\n"),
            "f.toml:2:8: `network.ipv4` must be an IPv4 network: \"10.88.0.0/16\"");
  EXPECT_EQ(complaints("[network]\nipv6 = \"10.88.0.0/16\"\n"),
            "f.toml:2:8: `network.ipv6` must be an IPv6 network: \"fd88:fab::/64\"");
  EXPECT_EQ(complaints("[timers]\nheartbeat = 5\n"),
            "f.toml:2:13: `timers.heartbeat` must be a text in quotes, not a whole number");
  EXPECT_EQ(complaints("[timers]\nheartbeat = \"5 parsecs\"\n"),
            "f.toml:2:13: `timers.heartbeat` must be a whole number with a unit: \"500us\", \"5ms\", \"1s\"");
  EXPECT_EQ(complaints("[timers]\nkeepalive = \"100ms\"\ndead = \"299ms\"\n"),
            "f.toml:3:8: `timers.dead` must be at least three times `timers.keepalive`");
  EXPECT_EQ(complaints("[ports]\nuse = [\"/1\"]\n"),
            "f.toml:2:8: `ports.use` must be an adapter or a port of it: \"mlx5_0\", \"mlx5_0/1\"");
  EXPECT_EQ(complaints("[ports.cost]\n\"mlx5_0/1\" = 0\n"),
            "f.toml:2:14: `ports.cost.mlx5_0/1` must be from 1 to 1000000");
  EXPECT_EQ(complaints("[routing]\nmultipath = \"yes\"\n"),
            "f.toml:2:13: `routing.multipath` must be true or false, not a text");
  EXPECT_EQ(complaints("[log]\nlevel = \"verbose\"\n"),
            "f.toml:2:9: `log.level` must be one of: debug, info, warning, error");
  EXPECT_EQ(complaints("[log]\nlevel = \"debgu\"\n"),
            "f.toml:2:9: `log.level` does not know \"debgu\"; did you mean \"debug\"?");
  EXPECT_EQ(complaints("network = 3\n"),
            "f.toml:1:11: `network` must be a table: write [network], not a whole number");
}

TEST(Configuration, AllComplaintsAtOnceInTheOrderOfTheFile) {
  EXPECT_EQ(complaints("[log]\nlevle = \"info\"\n[host]\nindex = -1\n"),
            "f.toml:2:1: unknown key `log.levle`; did you mean `level`?\n"
            "f.toml:4:9: `host.index` must be from 0 to 24575");
}

TEST(Configuration, NotToml) {
  EXPECT_THAT(complaints("[host\n"), testing::StartsWith("f.toml:1:6: not TOML: "));
  EXPECT_THROW(load_configuration("/nonexistent/f.toml"), ConfigurationError);
}

TEST(Addresses, HostAddressIsTheIndexthOfTheNetwork) {
  const auto of = [](const char* network, unsigned index) {
    const auto address = host_address(*parse_prefix(network), HostIndex(static_cast<std::uint16_t>(index)));
    return address ? to_string(*address) : "";
  };
  EXPECT_EQ(of("10.88.0.0/16", 1), "10.88.0.1");
  EXPECT_EQ(of("10.88.0.0/16", 300), "10.88.1.44");
  EXPECT_EQ(of("10.88.0.0/24", 254), "10.88.0.254");
  EXPECT_EQ(of("10.88.0.0/24", 255), "");  // broadcast
  EXPECT_EQ(of("10.88.0.0/16", 0), "");
  EXPECT_EQ(of("fd88:fab::/64", 10), "fd88:fab::a");
  EXPECT_EQ(of("10.88.4.16/28", 3), "10.88.4.19");
}

}  // namespace
}  // namespace fabric::daemon
