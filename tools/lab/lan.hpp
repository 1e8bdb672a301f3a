// The LAN of a lab: what the original of this design has beside its ring.
//
//   guest g1 ── h1 ═══ ring ═══ h5 ── guest g5        behind every host a prefix with a guest in it
//                │
//               LAN ── upstream ── "the world"        h2 is on the LAN as well
//
// LAB-lan is a namespace with a bridge, the switch, whose ports are named after who is plugged in. The first
// two hosts of the lab and `upstream` have an interface lan0 on it. upstream has static routes for all
// networks of the cluster to the gateway pair's virtual address, and an address that stands for everything
// beyond it. The pair has a static default route to upstream; the other hosts have none.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tools/lab/addresses.hpp"
#include "tools/lab/host_namespace.hpp"

namespace fabric::tools::lab {

class Lan {
 public:
  static constexpr const char* kSwitch = "lan";  ///< what the LAN is called where a cable of it is meant
  static constexpr const char* kUpstream = "upstream";
  static constexpr unsigned kGateways = 2;  ///< hosts that are on the LAN: the first so many

  /// `hosts` are the lab's, in their order. Throws Error where one has a name that the LAN needs, or where
  /// there are fewer than two.
  Lan(std::string lab, std::vector<std::string> hosts);

  /// @name Who is there
  /// @{
  [[nodiscard]] static std::string guest_of(unsigned number) { return "g" + std::to_string(number); }
  /// upstream and the guests: hosts without an adapter.
  [[nodiscard]] std::vector<std::string> members() const;
  [[nodiscard]] std::string guest_behind(const std::string& host) const { return guest_of(number_of(host)); }
  /// Whether a host or member has a cable to the LAN.
  [[nodiscard]] bool on_lan(const std::string& member) const;
  [[nodiscard]] bool has(const std::string& member) const;
  /// The address by which a member is asked whether it is there; upstream's stands for the world beyond it.
  [[nodiscard]] AddressPair address_of(const std::string& member) const;
  /// For /etc/hosts.
  [[nodiscard]] std::string hosts_lines() const;
  /// fabricd's configuration of a host: its prefixes, and its share of the gateway.
  [[nodiscard]] std::string configuration_of(const std::string& host) const;
  /// @}

  /// Makes switch, upstream, guests, and plugs everybody in. The hosts' namespaces exist.
  void make() const;
  /// Makes a host's interfaces anew, as its power-on would: nothing of before is left.
  void plug_in(const std::string& host) const;

  enum class Fault : std::uint8_t {
    carrier,  ///< the cable is out
    silent,   ///< the port has its carrier and drops everything
    mute,     ///< what the member sends is dropped
    deaf,     ///< what is for the member is dropped
  };
  /// Throws Error where the member is not on the LAN.
  void cut(const std::string& member, Fault fault) const;
  void mend(const std::string& member) const;
  /// "up", "down" (no carrier), "silent", "mute" or "deaf", by member.
  [[nodiscard]] std::map<std::string, std::string> ports() const;

 private:
  [[nodiscard]] HostNamespace net(const std::string& member) const;
  [[nodiscard]] unsigned number_of(const std::string& host) const;  ///< from 1
  void require_on_lan(const std::string& member) const;
  /// Joins a new interface lan0 of the member to a new port of the switch.
  void join(const std::string& member) const;

  std::string lab_;
  std::vector<std::string> hosts_;
};

}  // namespace fabric::tools::lab
