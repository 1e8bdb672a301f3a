// Two redundant trees towards every host ("maximally redundant trees", RFC 7811, Itai and Rodeh 1988).
//
// Towards a destination r each host has two ways that share no host and no cable with each other, as far as
// the cabling allows. They are made by numbering the hosts such that everyone (but r, which is both the
// lowest and the highest) has a lower and a higher neighbour: one way always steps down, the other always up,
// so they cannot meet before r. The numbering comes from a depth-first search out of r (Tarjan 1986, "Two
// streamlined depth-first search algorithms"). Among the lower (higher) neighbours the cheapest way is taken.
// Where a host or a cable is a single point of failure, both ways go through it, and are redundant on either
// side: every two-connected block of the map is numbered on its own, from the host where its frames leave it.
//
// Departures from RFC 7811: numbering per destination instead of one for all, which gives shorter ways at the
// price of O(hosts x cables) in general; a ring (all hosts with two cables) takes O(hosts). No MRT islands.
//
// Which of the two is way 0 matters to nobody but people. Block by block it is the one along which the
// numbering goes on to the next higher LID index more often: on a ring h1, h2 ... hN, way 0 is h1 to h2 to
// h3. On a ring that holds for all destinations, and stays when a host joins or leaves.
//
// All hosts compute the same trees from the same map. The trees count with every known cable, dead or live.
// Only where the failures leave a reachable host without any whole way (never on a ring), the trees towards
// that destination are made of the live cables alone.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "routing/topology.hpp"

namespace fabric::routing {

/// Both trees towards one destination. Reuse one object for many destinations: it keeps its memory.
class TreePair {
 public:
  /// With `live_only`, of live cables alone. `root` is a host of the topology. With `from`, another one, only
  /// what the ways of that host need: half the work.
  void compute(const Topology& topology, std::uint32_t root, bool live_only,
               std::uint32_t from = Topology::kNone);

  /// Arc (of Topology::arcs) by which `host` sends on `way`; kNone at the root and where there is none.
  [[nodiscard]] std::uint32_t arc(unsigned way, std::uint32_t host) const { return arc_[way][host]; }
  /// A reachable host without a whole way exists: the trees need `live_only`. After compute() for all hosts.
  [[nodiscard]] bool broken(const Topology& topology);

 private:
  void search(const Topology& topology, std::uint32_t root, bool live_only);
  void number(const Topology& topology);
  struct Block {
    std::uint32_t root;                ///< where its frames leave it towards the destination
    std::uint32_t top;                 ///< the highest: the first found
    std::uint32_t lowest;              ///< after the root in the numbering
    std::uint32_t begin = 0, end = 0;  ///< of order_
    bool exchanged = false;            ///< way 0 is the way up
  };
  void choose(const Topology& topology, Block& block, bool live_only, std::uint32_t from);
  template <bool kUp>
  void choose(const Topology& topology, const Block& block, std::uint32_t position, bool live_only);
  [[nodiscard]] std::uint32_t down_needed(const Topology& topology, const Block& block, bool live_only) const;
  void name_ways(const Topology& topology, Block& block);

  /// What the search knows of a host; together, because the search jumps from host to host.
  struct Visit {
    std::uint32_t time;   ///< position in found_
    std::uint32_t low;    ///< earliest time that the host's subtree is joined to
    std::uint32_t entry;  ///< arc from the host to its parent
  };
  /// What the numbering makes of it.
  struct Place {
    std::uint32_t block;           ///< of the cable to the parent
    std::uint32_t previous, next;  ///< in the block's numbering
    bool plus;                     ///< the next one that hangs on it goes after it
  };
  /// What the choice looks at again and again.
  struct Step {
    std::uint64_t cost;      ///< of the way down, then of the way up, to the block's root
    std::uint32_t position;  ///< in order_; kNone: none, as the destination has
  };

  std::uint32_t root_ = Topology::kNone;
  std::vector<std::uint32_t> found_;  ///< hosts in the order of the search
  std::vector<std::uint32_t> order_;  ///< all but the root: blocks in the order of the search, numbered
  std::vector<Visit> visits_;
  std::vector<Place> places_;
  std::vector<Step> steps_;
  std::vector<Block> blocks_;
  std::array<std::vector<std::uint32_t>, 2> arc_;
  std::array<std::vector<std::uint8_t>, 2> whole_;
};

/// How one host (topology.self) reaches all others.
class Ways {
 public:
  struct Way {
    std::uint32_t arc = Topology::kNone;  ///< out of self
    std::uint64_t cost = 0;
    std::uint32_t hops = 0;
    bool whole = false;
  };

  void compute(const Topology& topology);
  /// Towards `host`; both without an arc for self.
  [[nodiscard]] const std::array<Way, 2>& towards(std::uint32_t host) const { return ways_[host]; }
  /// Of the topology and everything else that the trees depend on: hosts with the same value have the same
  /// trees.
  [[nodiscard]] std::uint64_t hash() const { return hash_; }
  /// Arcs from `from` to `to`; empty if there is no such way.
  [[nodiscard]] std::vector<std::uint32_t> path(const Topology& topology, std::uint32_t from,
                                                std::uint32_t to, unsigned way) const;

 private:
  bool compute_ring(const Topology& topology);

  std::vector<std::array<Way, 2>> ways_;
  std::vector<bool> live_only_;  ///< by destination
  std::uint64_t hash_ = 0;
  TreePair trees_;
};

}  // namespace fabric::routing
