// What the data path needs to know, computed by the control thread, never changed once published.
//
// A frame for LID d leaves by egress[d]. Where that port is dead, it leaves by egress[d ^ 1], marked as
// turned (the two LIDs of a block are the two redundant ways to the host). A turned frame that meets a dead
// port is dropped. An entry of kNoPort counts as a dead port: a way may be missing for a moment while the
// hosts agree on a new map (docs/routing.md), or because the neighbour ahead is not ready.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "words/words.hpp"

namespace fabric::routing {

/// Ways per host, and so LIDs per block: LMC 1.
inline constexpr unsigned kLmc = 1;
inline constexpr unsigned kWays = 1u << kLmc;
inline constexpr HostIndex kMaxHostIndex{kMaxUnicastLid.value() >> kLmc};

constexpr Lid lid_of(HostIndex host, unsigned way) {
  return Lid(static_cast<std::uint16_t>((host.value() << kLmc) | way));
}
constexpr HostIndex host_of(Lid lid) {
  return HostIndex(static_cast<std::uint16_t>(lid.value() >> kLmc));
}
constexpr unsigned way_of(Lid lid) {
  return lid.value() & (kWays - 1);
}

/// An IP prefix; IPv4 is carried as ::ffff:0:0/96, so that one table serves both.
struct Prefix {
  std::array<std::uint8_t, 16> address{};
  std::uint8_t length = 0;  ///< bits, 0..128; an IPv4 prefix /n has length 96 + n
  auto operator<=>(const Prefix&) const = default;
};

/// How this host reaches another.
struct HostRoute {
  Guid guid;
  std::string name;
  HostIndex index;
  bool reachable = false;
  struct Way {
    PortIndex egress = kNoPort;
    std::uint32_t cost = 0;  ///< sum over the cables; 0 where the way is not usable
    std::uint16_t hops = 0;
    bool whole = false;  ///< no cable on it is known to be dead
  };
  std::array<Way, kWays> ways;
  /// Way of each lane (a flow's lane is flow_hash % lanes): all the same, unless both ways are used.
  std::vector<std::uint8_t> lanes;
};

struct ForwardingState {
  std::uint64_t generation = 0;
  HostIndex self = kNoHost;
  std::vector<PortIndex>
      egress;  ///< by LID; kNoPort where there is none; this host's own LIDs are kNoPort too
  std::vector<HostRoute> hosts;  ///< by host index; entries without a GUID are not in use
  /// Longest prefix first, then by address: what is routed to which host.
  std::vector<std::pair<Prefix, HostIndex>> prefixes;
};

}  // namespace fabric::routing
