#include "routing/ways.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "tests/unit/cabling.hpp"

namespace fabric::routing {
namespace {

constexpr auto kNone = Topology::kNone;

std::vector<std::uint32_t> walk(const Topology& topology, const TreePair& trees, std::uint32_t from,
                                std::uint32_t to, unsigned way) {
  std::vector<std::uint32_t> arcs;
  for (std::uint32_t host = from; host != to; host = topology.arcs[arcs.back()].to) {
    if (trees.arc(way, host) == kNone || arcs.size() > topology.hosts.size()) return {};
    arcs.push_back(trees.arc(way, host));
  }
  return arcs;
}

/// Naive: is there a path without this host and this cable?
bool connected(const Topology& topology, std::uint32_t from, std::uint32_t to, std::uint32_t without_host,
               std::uint32_t without_cable, bool live_only = false) {
  std::set<std::uint32_t> seen{from};
  const std::function<void(std::uint32_t)> visit = [&](std::uint32_t host) {
    for (const auto& arc : topology.arcs_of(host))
      if (arc.cable != without_cable && arc.to != without_host &&
          (!live_only || topology.cables[arc.cable].live) && seen.insert(arc.to).second)
        visit(arc.to);
  };
  visit(from);
  return seen.contains(to);
}

// The definition of maximally redundant: both ways share exactly the hosts and cables that every path shares.
void expect_redundant(const Topology& topology, std::uint32_t root) {
  TreePair trees;
  trees.compute(topology, root, false);
  for (std::uint32_t from = 0; from < topology.hosts.size(); ++from) {
    if (from == root) continue;
    SCOPED_TRACE("from " + std::to_string(from) + " to " + std::to_string(root));
    std::array<std::set<std::uint32_t>, 2> hosts, cables;
    for (const unsigned way : {0u, 1u}) {
      const auto arcs = walk(topology, trees, from, root, way);
      ASSERT_FALSE(arcs.empty()) << "way " << way << " does not arrive";
      for (const auto arc : arcs) {
        cables[way].insert(topology.arcs[arc].cable);
        if (topology.arcs[arc].to != root) hosts[way].insert(topology.arcs[arc].to);
      }
    }
    for (std::uint32_t h = 0; h < topology.hosts.size(); ++h) {
      if (h != from && h != root) {
        EXPECT_EQ(hosts[0].contains(h) && hosts[1].contains(h), !connected(topology, from, root, h, kNone))
            << "host " << h;
      }
    }
    for (std::uint32_t c = 0; c < topology.cables.size(); ++c)
      EXPECT_EQ(cables[0].contains(c) && cables[1].contains(c), !connected(topology, from, root, kNone, c))
          << "cable " << c;
  }
}

TEST(Ways, AreAsRedundantAsAnyCablingAllows) {
  for (unsigned seed = 0; seed < 3000 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Topology topology = random_cabling(random, 0).topology();
    for (std::uint32_t root = 0; root < topology.hosts.size(); ++root) expect_redundant(topology, root);
  }
  for (const auto& cabling : {ring(2), ring(3), ring(7), chain(5), torus(3, 4), torus(2, 2)})
    for (std::uint32_t root = 0; root < cabling.advertisements.size(); ++root)
      expect_redundant(cabling.topology(), root);
}

TEST(Ways, WayZeroOfARingAscends) {
  const Topology topology = ring(5).topology(1);
  Ways ways;
  ways.compute(topology);
  const auto hosts = [&](std::uint32_t from, std::uint32_t to, unsigned way) {
    std::vector<std::uint32_t> result{from};
    for (const auto arc : ways.path(topology, from, to, way)) result.push_back(topology.arcs[arc].to);
    return result;
  };
  EXPECT_EQ(hosts(0, 2, 0), (std::vector<std::uint32_t>{0, 1, 2}));
  EXPECT_EQ(hosts(0, 2, 1), (std::vector<std::uint32_t>{0, 4, 3, 2}));
  EXPECT_EQ(hosts(4, 1, 0), (std::vector<std::uint32_t>{4, 0, 1}));
  EXPECT_EQ(ways.towards(3)[0].hops, 2u);
  EXPECT_EQ(ways.towards(3)[1].hops, 3u);
}

TEST(Ways, TheDirectionStaysWhenAHostJoinsOrLeaves) {
  Cabling five = ring(5);
  Cabling six(6);  // the sixth between 2 and 3
  for (const auto& [a, b] : {std::pair{0, 1}, {1, 2}, {2, 5}, {5, 3}, {3, 4}, {4, 0}}) six.add(a, b);
  for (unsigned self = 0; self < 5; ++self) {
    const Topology before = five.topology(self), after = six.topology(self);
    Ways ways_before, ways_after;
    ways_before.compute(before);
    ways_after.compute(after);
    for (std::uint32_t to = 0; to < 5; ++to) {
      if (to == self) continue;
      const auto next = [&](const Topology& topology, const Ways& ways, unsigned way) {
        const auto host = topology.arcs[ways.towards(to)[way].arc].to;
        return host == 5 ? (self == 2 ? 3 : 2) : host;  // the one behind the new host
      };
      for (const unsigned way : {0u, 1u})
        EXPECT_EQ(next(before, ways_before, way), next(after, ways_after, way)) << self << " to " << to;
    }
  }
}

// Half the work for one host gives that host the same ways.
TEST(Ways, ForOneHostAreThoseForAll) {
  for (unsigned seed = 0; seed < 2000 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Topology topology = random_cabling(random, 30).topology();
    const auto count = static_cast<std::uint32_t>(topology.hosts.size());
    for (std::uint32_t root = 0; root < count; ++root) {
      for (const bool live_only : {false, true}) {
        TreePair all, one;
        all.compute(topology, root, live_only);
        for (std::uint32_t from = 0; from < count; ++from) {
          if (from == root) continue;
          one.compute(topology, root, live_only, from);
          for (const unsigned way : {0u, 1u})
            EXPECT_EQ(walk(topology, one, from, root, way), walk(topology, all, from, root, way))
                << "way " << way << " from " << from << " to " << root << (live_only ? ", live only" : "");
        }
      }
    }
  }
}

// The quick computation for rings against the general one, with hosts in any order round the ring.
TEST(Ways, RingsAreComputedAsEverythingElse) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const unsigned count = 2 + random() % 9;
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    Cabling cabling(count);
    for (unsigned i = 0; i < count; ++i)
      cabling.add(order[i], order[(i + 1) % count], 1 + random() % 3, random() % 4 != 0);
    const Topology topology = cabling.topology(random() % count);
    // A host that cannot be reached over remembered cables either is not on the map, so count again.
    if (topology.hosts.size() != count) continue;
    Ways ways;
    ways.compute(topology);
    for (std::uint32_t to = 0; to < count; ++to) {
      if (to == topology.self) continue;
      TreePair trees;
      trees.compute(topology, to, false);
      for (const unsigned way : {0u, 1u}) {
        const auto arcs = walk(topology, trees, topology.self, to, way);
        const auto& result = ways.towards(to)[way];
        EXPECT_EQ(result.arc, arcs.front()) << "to " << to << " way " << way;
        EXPECT_EQ(result.hops, arcs.size());
        std::uint32_t cost = 0;
        bool whole = true;
        for (const auto arc : arcs) {
          cost += topology.arcs[arc].cost;
          whole = whole && topology.cables[topology.arcs[arc].cable].live;
        }
        EXPECT_EQ(result.cost, std::uint64_t{cost});
        EXPECT_EQ(result.whole, whole);
      }
    }
  }
}

// Whoever is joined by live cables has a whole way, whatever else is dead; all hosts agree on the trees.
TEST(Ways, ReachAllThatIsConnectedAfterAnyFailures) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Cabling cabling = random_cabling(random, 30);
    const Topology first = cabling.topology(0);
    std::map<Guid, std::uint64_t> hash;
    for (std::uint32_t self = 0; self < first.hosts.size(); ++self) {
      const Topology topology = cabling.topology(self);
      ASSERT_EQ(topology.self, self);
      Ways ways;
      ways.compute(topology);
      if (first.hosts[self].reachable) {
        hash[topology.hosts[self].guid] = ways.hash();
      }
      for (std::uint32_t to = 0; to < topology.hosts.size(); ++to) {
        if (to == self) continue;
        const auto& [zero, one] = ways.towards(to);
        EXPECT_EQ(zero.whole || one.whole, connected(topology, self, to, kNone, kNone, true))
            << self << " to " << to;
        for (const unsigned way : {0u, 1u})
          if (ways.towards(to)[way].whole) {
            EXPECT_EQ(ways.path(topology, self, to, way).size(), ways.towards(to)[way].hops);
          }
      }
    }
    for (const auto& [guid, value] : hash) EXPECT_EQ(value, hash.begin()->second) << to_string(guid);
  }
}

TEST(Ways, AFailureDoesNotMoveTheTreesOfARing) {
  Cabling whole = ring(6), cut(6);
  for (unsigned h = 0; h < 6; ++h) cut.add(h, (h + 1) % 6, 1, h != 2);
  Ways before, after;
  before.compute(whole.topology(4));
  after.compute(cut.topology(4));
  EXPECT_EQ(before.hash(), after.hash());
  for (std::uint32_t to : {0u, 1u, 2u, 3u, 5u})
    for (const unsigned way : {0u, 1u}) EXPECT_EQ(before.towards(to)[way].arc, after.towards(to)[way].arc);
  EXPECT_TRUE(after.towards(2)[0].whole);
  EXPECT_FALSE(after.towards(2)[1].whole);
}

TEST(Weakness, NamesWhatOneFailureCutsOff) {
  for (unsigned seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Topology topology = random_cabling(random, 20).topology();
    const Weakness weakness = find_weakness(topology);
    for (std::uint32_t h = 0; h < topology.hosts.size(); ++h) {
      bool cuts = false;
      for (std::uint32_t a = 0; a < topology.hosts.size(); ++a)
        for (std::uint32_t b = 0; b < a; ++b)
          if (a != h && b != h && topology.hosts[a].reachable && topology.hosts[b].reachable)
            cuts = cuts || !connected(topology, a, b, h, kNone, true);
      EXPECT_EQ(weakness.hosts[h], cuts && topology.hosts[h].reachable) << "host " << h;
    }
    for (std::uint32_t c = 0; c < topology.cables.size(); ++c) {
      const auto& cable = topology.cables[c];
      EXPECT_EQ(weakness.cables[c],
                cable.live && !connected(topology, cable.a.host, cable.b.host, kNone, c, true))
          << "cable " << c;
    }
  }
}

}  // namespace
}  // namespace fabric::routing
