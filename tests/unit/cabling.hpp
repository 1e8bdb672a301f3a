// Maps for tests of the routing cores: from a list of cables to the advertisements that describe it.
#pragma once

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "routing/topology.hpp"

namespace fabric::routing {

/// Hosts 0..n-1 with GUIDs 0x1000 + host and LID indexes host + 1; ports are numbered as cables are added.
struct Cabling {
  std::vector<Advertisement> advertisements;
  LidTable table;

  explicit Cabling(unsigned hosts) {
    table.version = 1;
    for (unsigned h = 0; h < hosts; ++h) {
      advertisements.emplace_back().origin = guid(h);
      advertisements.back().sequence = 1;
      table.entries.push_back({guid(h), HostIndex(static_cast<std::uint16_t>(h + 1))});
    }
  }
  static Guid guid(unsigned host) { return Guid(0x1000 + host); }

  void add(unsigned a, unsigned b, std::uint32_t cost = 1, bool live = true) {
    auto& x = advertisements[a].links;
    auto& y = advertisements[b].links;
    const PortIndex port_a(static_cast<std::uint8_t>(x.size())), port_b(static_cast<std::uint8_t>(y.size()));
    x.push_back({port_a, guid(b), port_b, live, cost, 100});
    y.push_back({port_b, guid(a), port_a, live, cost, 100});
  }

  [[nodiscard]] Topology topology(unsigned self = 0) const {
    std::vector<const Advertisement*> pointers;
    for (const auto& advertisement : advertisements) pointers.push_back(&advertisement);
    return make_topology(guid(self), pointers, table);
  }
};

inline Cabling ring(unsigned hosts, std::uint32_t cost = 1) {
  Cabling cabling(hosts);
  for (unsigned h = 0; h < hosts; ++h) cabling.add(h, (h + 1) % hosts, cost);
  return cabling;
}

inline Cabling chain(unsigned hosts) {
  Cabling cabling(hosts);
  for (unsigned h = 0; h + 1 < hosts; ++h) cabling.add(h, h + 1);
  return cabling;
}

inline Cabling torus(unsigned rows, unsigned columns) {
  Cabling cabling(rows * columns);
  for (unsigned r = 0; r < rows; ++r)
    for (unsigned c = 0; c < columns; ++c) {
      cabling.add(r * columns + c, r * columns + (c + 1) % columns);
      cabling.add(r * columns + c, (r + 1) % rows * columns + c);
    }
  return cabling;
}

/// Any connected multigraph; a share of the cables is dead.
inline Cabling random_cabling(std::mt19937& random, unsigned dead_percent) {
  const unsigned hosts = 2 + random() % 9;
  Cabling cabling(hosts);
  const auto live = [&] { return random() % 100 >= dead_percent; };
  for (unsigned h = 1; h < hosts; ++h) {
    const unsigned other = random() % h;
    cabling.add(h, other, 1 + random() % 5, live());
  }
  for (unsigned extra = random() % (2 * hosts); extra > 0; --extra) {
    const unsigned a = random() % hosts, b = random() % hosts;
    if (a != b) cabling.add(a, b, 1 + random() % 5, live());
  }
  return cabling;
}

}  // namespace fabric::routing
