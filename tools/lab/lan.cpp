#include "tools/lab/lan.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;

namespace {

// The LAN: hosts have its k-th address.
constexpr const char* kLan4 = "192.168.88.{}";
constexpr const char* kLan6 = "fd88:1a::{}";
constexpr unsigned kUpstreamNumber = 254;
constexpr unsigned kVirtualNumber = 100;
constexpr const char* kVirtualLinkLocal = "fe80::88";
constexpr unsigned kVrid = 88;
// The world: an address beyond upstream.
constexpr const char* kWorld4 = "198.51.100.1";
constexpr const char* kWorld6 = "2001:db8::1";
// The guests' networks: host K serves the K-th, is its first address and the guest its second.
constexpr const char* kGuests4 = "10.77.0.0/16";
constexpr const char* kGuests6 = "fd88:77::/48";
constexpr const char* kFabric4 = "10.88.0.0/16";
constexpr const char* kFabric6 = "fd88:fab::/64";

std::string lan4(unsigned number) {
  return fmt::format(fmt::runtime(kLan4), number);
}
std::string lan6(unsigned number) {
  return fmt::format(fmt::runtime(kLan6), number);
}
std::string guest4(unsigned host, unsigned number) {
  return fmt::format("10.77.{}.{}", host, number);
}
std::string guest6(unsigned host, unsigned number) {
  return fmt::format("fd88:77:0:{:x}::{}", host, number == 0 ? "" : fmt::format("{:x}", number));
}

AddressPair addresses(const std::string& v4, const std::string& v6) {
  AddressPair pair;
  inet_pton(AF_INET, v4.c_str(), &pair.v4);
  inet_pton(AF_INET6, v6.c_str(), &pair.v6);
  return pair;
}

void set_sysctl(const std::string& name, const std::string& value) {
  std::ofstream file("/proc/sys/net/" + name);
  if (!(file << value).flush()) throw Error("cannot set net/" + name + " to " + value);
}

/// Addresses of the namespace's interfaces are usable at once, and nobody but us configures any.
void be_quiet(const HostNamespace& net) {
  net.visit([] {
    for (const char* which : {"all", "default"}) {
      set_sysctl(fmt::format("ipv6/conf/{}/accept_dad", which), "0");
      set_sysctl(fmt::format("ipv6/conf/{}/accept_ra", which), "0");
    }
  });
}

}  // namespace

Lan::Lan(std::string lab, std::vector<std::string> hosts) : lab_(std::move(lab)), hosts_(std::move(hosts)) {
  if (hosts_.size() < kGateways)
    throw Error("a LAN needs a lab of at least two hosts, which share the gateway");
  for (const std::string& host : hosts_)
    if (host == kSwitch || has(host)) throw Error("with a LAN, no host can be called '" + host + "'");
}

// --- who is there

HostNamespace Lan::net(const std::string& member) const {
  return HostNamespace(lab_ + "-" + member);
}

unsigned Lan::number_of(const std::string& host) const {
  return static_cast<unsigned>(std::find(hosts_.begin(), hosts_.end(), host) - hosts_.begin()) + 1;
}

std::vector<std::string> Lan::members() const {
  std::vector<std::string> members{kUpstream};
  for (unsigned k = 1; k <= hosts_.size(); ++k) members.push_back(guest_of(k));
  return members;
}

bool Lan::has(const std::string& member) const {
  const auto all = members();
  return std::find(all.begin(), all.end(), member) != all.end();
}

bool Lan::on_lan(const std::string& member) const {
  return member == kUpstream || number_of(member) <= kGateways;
}

void Lan::require_on_lan(const std::string& member) const {
  if (!on_lan(member))
    throw Error(
        fmt::format("'{}' is not on the LAN: {}, {} and {} are", member, hosts_[0], hosts_[1], kUpstream));
}

AddressPair Lan::address_of(const std::string& member) const {
  if (member == kUpstream) return addresses(kWorld4, kWorld6);
  const auto number = static_cast<unsigned>(std::stoul(member.substr(1)));
  return addresses(guest4(number, 2), guest6(number, 2));
}

std::string Lan::hosts_lines() const {
  std::string lines;
  const auto add = [&](const std::string& v4, const std::string& v6, const std::string& name) {
    lines += v4 + " " + name + "\n" + v6 + " " + name + "\n";
  };
  for (unsigned k = 1; k <= hosts_.size(); ++k) add(guest4(k, 2), guest6(k, 2), guest_of(k));
  add(lan4(kUpstreamNumber), lan6(kUpstreamNumber), kUpstream);
  add(lan4(kVirtualNumber), lan6(kVirtualNumber), "gateway");
  add(kWorld4, kWorld6, "world");
  return lines;
}

std::string Lan::configuration_of(const std::string& host) const {
  const unsigned k = number_of(host);
  std::string text =
      fmt::format("[network]\nprefixes = [\"{}/24\", \"{}/64\"]\n", guest4(k, 0), guest6(k, 0));
  if (k <= kGateways)
    text += fmt::format(
        "\n[gateway]\ninterface = \"lan0\"\nvrid = {}\npriority = {}\naddresses = [\"{}/24\", "
        "\"{}/64\", \"{}/64\"]\n",
        kVrid, 200 - 50 * (k - 1), lan4(kVirtualNumber), kVirtualLinkLocal, lan6(kVirtualNumber));
  return text;
}

// --- making it

void Lan::join(const std::string& member) const {
  net(member).ip_batch(
      {fmt::format("link add lan0 type veth peer name {} netns {}", member, net(kSwitch).name()),
       "link set lan0 up"});
  net(kSwitch).ip_batch(
      {fmt::format("link set {} master switch", member), fmt::format("link set {} up", member)});
}

void Lan::make() const {
  net(kSwitch).make();
  be_quiet(net(kSwitch));
  // Without spanning tree: a port forwards as soon as it is up.
  net(kSwitch).ip_batch(
      {"link add switch type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set switch up"});

  net(kUpstream).make();
  be_quiet(net(kUpstream));
  join(kUpstream);
  net(kUpstream).ip_batch({fmt::format("address add {}/24 dev lan0", lan4(kUpstreamNumber)),
                           fmt::format("address add {}/64 dev lan0", lan6(kUpstreamNumber)),
                           fmt::format("address add {}/32 dev lo", kWorld4),
                           fmt::format("address add {}/128 dev lo", kWorld6),
                           fmt::format("route add {} via {}", kGuests4, lan4(kVirtualNumber)),
                           fmt::format("route add {} via {}", kFabric4, lan4(kVirtualNumber)),
                           fmt::format("route add {} via {} dev lan0", kGuests6, lan6(kVirtualNumber)),
                           fmt::format("route add {} via {} dev lan0", kFabric6, lan6(kVirtualNumber))});

  for (unsigned k = 1; k <= hosts_.size(); ++k) {
    net(guest_of(k)).make();
    be_quiet(net(guest_of(k)));
    be_quiet(net(hosts_[k - 1]));
    plug_in(hosts_[k - 1]);
  }
}

void Lan::plug_in(const std::string& host) const {
  const unsigned k = number_of(host);
  const HostNamespace here = net(host);
  // What is on top of them goes with them.
  for (const char* interface : {"lan0", "guest0"})
    if (here.has_interface(interface)) here.ip_batch({fmt::format("link delete {}", interface)});
  here.ip_batch({fmt::format("link add guest0 type veth peer name eth0 netns {}", net(guest_of(k)).name()),
                 "link set guest0 up", fmt::format("address add {}/24 dev guest0", guest4(k, 1)),
                 fmt::format("address add {}/64 dev guest0", guest6(k, 1))});
  net(guest_of(k))
      .ip_batch({"link set eth0 up", fmt::format("address add {}/24 dev eth0", guest4(k, 2)),
                 fmt::format("address add {}/64 dev eth0", guest6(k, 2)),
                 fmt::format("route add default via {}", guest4(k, 1)),
                 fmt::format("route add default via {} dev eth0", guest6(k, 1))});
  if (!on_lan(host)) return;
  join(host);
  here.ip_batch({fmt::format("address add {}/24 dev lan0", lan4(k)),
                 fmt::format("address add {}/64 dev lan0", lan6(k)),
                 fmt::format("route add default via {} dev lan0", lan4(kUpstreamNumber)),
                 fmt::format("route add default via {} dev lan0", lan6(kUpstreamNumber))});
}

// --- faults

void Lan::cut(const std::string& member, Fault fault) const {
  require_on_lan(member);
  const HostNamespace net = this->net(kSwitch);
  const std::string forget = fmt::format("link set {} type bridge_slave fdb_flush", member);
  switch (fault) {
    case Fault::carrier:
      return net.ip_batch({fmt::format("link set {} down", member)});
    case Fault::silent:
      return net.bridge_batch({fmt::format("link set dev {} state 0", member)});
    case Fault::mute:  // a locked port takes frames only of stations that somebody has entered by hand
      net.bridge_batch({fmt::format("link set dev {} locked on learning off", member)});
      return net.ip_batch({forget});
    case Fault::deaf:  // stations that are not known are flooded to, and this port is left out of floods
      net.bridge_batch(
          {fmt::format("link set dev {} learning off flood off mcast_flood off bcast_flood off", member)});
      return net.ip_batch({forget});
  }
}

void Lan::mend(const std::string& member) const {
  require_on_lan(member);
  const HostNamespace net = this->net(kSwitch);
  net.ip_batch({fmt::format("link set {} up", member)});
  net.bridge_batch({fmt::format(
      "link set dev {} state 3 locked off learning on flood on mcast_flood on bcast_flood on", member)});
}

std::map<std::string, std::string> Lan::ports() const {
  std::map<std::string, std::string> ports;
  const json::value listed = json::parse(net(kSwitch).bridge_ports());
  for (const json::value& port : listed.as_array()) {
    std::string state = "up";
    if (port.at("state") == "disabled") {
      const auto& flags = port.at("flags").as_array();
      const bool light = std::find(flags.begin(), flags.end(), json::value("LOWER_UP")) != flags.end();
      state = light ? "silent" : "down";
    } else if (port.at("locked").as_bool()) {
      state = "mute";
    } else if (!port.at("flood").as_bool()) {
      state = "deaf";
    }
    ports[json::value_to<std::string>(port.at("ifname"))] = state;
  }
  return ports;
}

}  // namespace fabric::tools::lab
