// The map: hosts and cables, made from the advertisements alike by every host that has the same ones.
//
// A cable is on the map as long as it is *known*, not only while it is *live*. It is live if both ends say it
// is up. It is known if it is live, or if an end remembers it and nothing speaks against it; so a cut cable
// or a host that died stays on the map for a while, the ways towards everyone stay what they are, and only
// the pick of the way changes. docs/routing.md, "The map", has the rules; they are these:
//   - an end that is reachable counts; what a host that cannot be reached said of its cables with reachable
//     ones does not;
//   - a port has one cable: an end whose port is used for another speaks against;
//   - between hosts that cannot be reached, either end's word does.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "routing/messages.hpp"
#include "words/words.hpp"

namespace fabric::routing {

struct Topology {
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;

  struct Host {
    Guid guid;
    HostIndex index = kNoHost;
    bool reachable = false;  ///< over live cables
  };
  struct Cable {
    struct End {
      std::uint32_t host = kNone;
      PortIndex port;
      std::uint32_t cost = 1;  ///< of sending from here
      bool up = false;         ///< says this end
    };
    End a, b;                ///< a.host < b.host
    std::uint32_t rate = 0;  ///< Mbit/s, the smaller of both ends'
    bool live = false;
  };
  /// A cable as one of its ends sees it.
  struct Arc {
    std::uint32_t to = kNone;
    std::uint32_t cable = kNone;
    std::uint32_t cost = 1;      ///< of sending from here to `to`
    std::uint32_t back = kNone;  ///< the same cable in arcs, from `to`
  };

  /// In the order of LID index, those without one last, then of GUID. All of them are joined to `self` by
  /// known cables.
  std::vector<Host> hosts;
  std::vector<Cable> cables;
  std::vector<std::uint32_t> first;  ///< arcs of host h: arcs[first[h]] to arcs[first[h + 1]]
  std::vector<Arc> arcs;             ///< of each host by neighbour, then own port
  std::uint32_t self = kNone;

  [[nodiscard]] std::span<const Arc> arcs_of(std::uint32_t host) const {
    return std::span(arcs).subspan(first[host], first[host + 1] - first[host]);
  }
  [[nodiscard]] const Cable::End& near_end(std::uint32_t from, const Arc& arc) const {
    return cables[arc.cable].a.host == from ? cables[arc.cable].a : cables[arc.cable].b;
  }
  [[nodiscard]] const Cable::End& far_end(std::uint32_t from, const Arc& arc) const {
    return cables[arc.cable].a.host == from ? cables[arc.cable].b : cables[arc.cable].a;
  }
  /// kNone if it is not on the map. Linear.
  [[nodiscard]] std::uint32_t find(Guid guid) const;

  /// Everything that the ways depend on except which cables are live. The same at all hosts with the same
  /// map.
  [[nodiscard]] std::uint64_t hash() const;
};

/// The map around `self`, which must be among the advertisements. Indexes come from `table`.
Topology make_topology(Guid self, std::span<const Advertisement* const> advertisements,
                       const LidTable& table);

/// What one failure cuts off, of the live cables around `self`.
struct Weakness {
  std::vector<bool> hosts;   ///< by host of the topology: without it, others cannot reach each other
  std::vector<bool> cables;  ///< by cable: bridges
};
Weakness find_weakness(const Topology& topology);

/// FNV-1a over numbers: the same on every machine.
class Hash {
 public:
  Hash& add(std::uint64_t value) {
    for (int i = 0; i < 8; ++i) {
      state_ = (state_ ^ (value & 0xFF)) * 0x100000001B3;
      value >>= 8;
    }
    return *this;
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xCBF29CE484222325;
};

}  // namespace fabric::routing
