#include "routing/ways.hpp"

#include <algorithm>
#include <limits>

namespace fabric::routing {
namespace {

constexpr auto kNone = Topology::kNone;
constexpr auto kNever = std::numeric_limits<std::uint64_t>::max();

}  // namespace

void TreePair::compute(const Topology& topology, std::uint32_t root, bool live_only, std::uint32_t from) {
  root_ = root;
  search(topology, root, live_only);
  number(topology);
  for (auto& arcs : arc_) arcs.assign(topology.hosts.size(), kNone);
  if (from == kNone) {
    for (Block& block : blocks_) choose(topology, block, live_only, kNone);
  } else {
    // Block by block on the way to the root.
    for (std::uint32_t host = from; host != root && places_[host].block != kNone;) {
      Block& block = blocks_[places_[host].block];
      choose(topology, block, live_only, host);
      host = block.root;
    }
  }
}

/// Depth-first search with low points. A host whose subtree is joined to nothing before its parent begins a
/// block, which its parent is the root of. Needs no stack: the cable to the parent says where to go on.
void TreePair::search(const Topology& topology, std::uint32_t root, bool live_only) {
  found_.clear();
  visits_.assign(topology.hosts.size(), {kNone, kNone, kNone});

  const auto visit = [&](std::uint32_t host, std::uint32_t entry) {
    const auto time = static_cast<std::uint32_t>(found_.size());
    visits_[host] = {time, time, entry};
    found_.push_back(host);
  };
  visit(root, kNone);
  for (std::uint32_t host = root, a = topology.first[root];;) {
    Visit& here = visits_[host];
    if (a == topology.first[host + 1]) {
      if (host == root) return;
      const Topology::Arc& entry = topology.arcs[here.entry];
      Visit& parent = visits_[entry.to];
      parent.low = std::min(parent.low, here.low);
      host = entry.to;
      a = entry.back + 1;
      continue;
    }
    const Topology::Arc& arc = topology.arcs[a];
    if (a == here.entry || (live_only && !topology.cables[arc.cable].live)) {
      ++a;
    } else if (const std::uint32_t time = visits_[arc.to].time; time != kNone) {
      here.low = std::min(here.low, time);
      ++a;
    } else {
      visit(arc.to, arc.back);
      host = arc.to;
      a = topology.first[host];
    }
  }
}

/// Each block's hosts between its root, which is the lowest, and its top, which is the highest.
void TreePair::number(const Topology& topology) {
  blocks_.clear();
  places_.assign(topology.hosts.size(), {kNone, kNone, kNone, false});
  steps_.assign(topology.hosts.size(), {0, kNone});
  for (std::size_t i = 1; i < found_.size(); ++i) {
    const std::uint32_t host = found_[i];
    const std::uint32_t parent = topology.arcs[visits_[host].entry].to;
    Place& place = places_[host];
    Place& above = places_[parent];
    if (visits_[host].low >= visits_[parent].time) {
      place.block = static_cast<std::uint32_t>(blocks_.size());
      blocks_.push_back({parent, host, host});
      continue;
    }
    place.block = above.block;
    Block& block = blocks_[place.block];
    const std::uint32_t joined = found_[visits_[host].low];
    if (joined == block.root || !places_[joined].plus) {  // before the parent
      place.previous = above.previous;
      place.next = parent;
      (above.previous == kNone ? block.lowest : places_[above.previous].next) = host;
      above.previous = host;
      above.plus = true;
    } else {
      place.next = above.next;
      place.previous = parent;
      if (above.next != kNone) places_[above.next].previous = host;
      above.next = host;
      above.plus = false;
    }
  }
  order_.clear();
  for (Block& block : blocks_) {
    block.begin = static_cast<std::uint32_t>(order_.size());
    for (std::uint32_t host = block.lowest; host != kNone; host = places_[host].next) {
      steps_[host].position = static_cast<std::uint32_t>(order_.size());
      order_.push_back(host);
    }
    block.end = static_cast<std::uint32_t>(order_.size());
  }
}

/// The ways of the block's hosts, or, with `from`, of that one of them and all that it passes.
void TreePair::choose(const Topology& topology, Block& block, bool live_only, std::uint32_t from) {
  std::uint32_t last_down = block.end - 1, last_up = block.begin;
  if (from != kNone) {
    last_up = steps_[from].position;
    last_down = std::max(last_up, down_needed(topology, block, live_only));
  }
  for (std::uint32_t p = block.begin; p <= last_down; ++p) choose<false>(topology, block, p, live_only);
  for (std::uint32_t p = block.end; p-- > last_up;) choose<true>(topology, block, p, live_only);
  name_ways(topology, block);
}

/// The cheapest neighbour below (above, for the way up), where the block's root is both. A cable to the root
/// serves one of the two only, unless it is the only cable that there is. All below (above) have chosen.
template <bool kUp>
void TreePair::choose(const Topology& topology, const Block& block, std::uint32_t position, bool live_only) {
  const std::uint32_t host = order_[position];
  const std::uint32_t size = block.end - block.begin;
  std::uint64_t best = kNever;
  std::uint32_t chosen = kNone, to_root = kNone;
  for (std::uint32_t a = topology.first[host]; a < topology.first[host + 1]; ++a) {
    const Topology::Arc& arc = topology.arcs[a];
    if (live_only && !topology.cables[arc.cable].live) continue;
    if (arc.to == block.root) {
      // On the way up: what the way down has left over.
      if (kUp ? a == arc_[0][host] : host == block.top && a == visits_[host].entry) continue;
      if (to_root == kNone || arc.cost < topology.arcs[to_root].cost) to_root = a;
      continue;
    }
    const Step& there = steps_[arc.to];
    if (there.position - block.begin >= size) continue;  // of another block
    if ((there.position > position) == kUp && there.cost + arc.cost < best)
      best = there.cost + arc.cost, chosen = a;
  }
  // On the way down, a host of the upper half leaves its cable to the root for the way up, if it can.
  if (to_root != kNone && topology.arcs[to_root].cost <= best &&
      (kUp || chosen == kNone || position - block.begin < size / 2))
    best = topology.arcs[to_root].cost, chosen = to_root;
  if (chosen == kNone) {  // a bridge: the top, alone in its block
    chosen = visits_[host].entry;
    best = topology.arcs[chosen].cost;
  }
  arc_[kUp ? 1 : 0][host] = chosen;
  steps_[host].cost = best;
}

/// The last position of a neighbour of the block's root which may send down over its cable to the root. Up to
/// there, the ways up cannot be chosen before the ways down.
std::uint32_t TreePair::down_needed(const Topology& topology, const Block& block, bool live_only) const {
  std::uint32_t result = block.begin;
  for (const Topology::Arc& arc : topology.arcs_of(block.root)) {
    const std::uint32_t position = steps_[arc.to].position;
    if (position - block.begin >= block.end - block.begin || position <= result) continue;
    const bool leaves_it = position - block.begin >= (block.end - block.begin) / 2 &&
                           std::ranges::any_of(topology.arcs_of(arc.to), [&](const Topology::Arc& other) {
                             return (!live_only || topology.cables[other.cable].live) &&
                                    steps_[other.to].position < position &&
                                    steps_[other.to].position >= block.begin;
                           });
    if (!leaves_it) result = position;
  }
  return result;
}

/// Exchanges the ways of a block where the way up is the one that people would call the first.
void TreePair::name_ways(const Topology& topology, Block& block) {
  // Once round: the root, then from the highest down to the lowest.
  std::uint32_t down = 0, first = block.root, before_first = order_[block.begin], previous = block.root;
  for (std::uint32_t i = block.end; i-- > block.begin; previous = order_[i]) {
    const std::uint32_t host = order_[i];
    down += host > previous ? 1 : 0;
    if (host < first) first = host, before_first = previous;
  }
  down += block.root > previous ? 1 : 0;
  const std::uint32_t hosts = block.end - block.begin + 1;
  bool exchanged = 2 * down < hosts;
  if (2 * down == hosts) {
    // From the first host to the first of its neighbours; between two hosts, over the first port.
    const std::uint32_t position = first == block.root ? block.end : steps_[first].position;
    const std::uint32_t after_first = position > block.begin ? order_[position - 1] : block.root;
    if (after_first != before_first) {
      exchanged = before_first < after_first;
    } else {
      const std::uint32_t other = order_[block.begin];
      exchanged = first == other ? arc_[1][other] < arc_[0][other]
                                 : topology.arcs[arc_[0][other]].back < topology.arcs[arc_[1][other]].back;
    }
  }
  block.exchanged = exchanged;
  if (!exchanged) return;
  for (std::uint32_t i = block.begin; i < block.end; ++i) std::swap(arc_[0][order_[i]], arc_[1][order_[i]]);
}

bool TreePair::broken(const Topology& topology) {
  for (auto& whole : whole_) whole.assign(topology.hosts.size(), 0);
  whole_[0][root_] = whole_[1][root_] = 1;
  for (const Block& block : blocks_) {
    for (const unsigned way : {0u, 1u}) {
      const bool up = (way == 1) != block.exchanged;
      for (std::uint32_t i = block.begin; i < block.end; ++i) {
        const std::uint32_t host = order_[up ? block.end - 1 - (i - block.begin) : i];
        const Topology::Arc& arc = topology.arcs[arc_[way][host]];
        whole_[way][host] = topology.cables[arc.cable].live && whole_[way][arc.to] != 0 ? 1 : 0;
      }
    }
    for (std::uint32_t i = block.begin; i < block.end; ++i)
      if (topology.hosts[order_[i]].reachable && whole_[0][order_[i]] == 0 && whole_[1][order_[i]] == 0)
        return true;
  }
  return false;
}

void Ways::compute(const Topology& topology) {
  const auto count = static_cast<std::uint32_t>(topology.hosts.size());
  ways_.assign(count, {});
  live_only_.assign(count, false);
  hash_ = topology.hash();
  if (compute_ring(topology)) return;

  // One dead cable leaves every host that can be reached a whole way: that is what the two are for.
  const bool may_break = std::ranges::count(topology.cables, false, &Topology::Cable::live) > 1;
  bool any_live_only = false;
  for (std::uint32_t to = 0; to < count; ++to) {
    if (may_break && topology.hosts[to].reachable) {
      trees_.compute(topology, to, false);
      if (trees_.broken(topology)) any_live_only = live_only_[to] = true;
    }
    if (to == topology.self) continue;
    if (!may_break || live_only_[to] || !topology.hosts[to].reachable)
      trees_.compute(topology, to, live_only_[to], topology.self);
    for (const unsigned way : {0u, 1u}) {
      Way& result = ways_[to][way];
      if (trees_.arc(way, topology.self) == kNone) continue;
      result.arc = trees_.arc(way, topology.self);
      result.whole = true;
      for (std::uint32_t host = topology.self; host != to;) {
        const Topology::Arc& arc = topology.arcs[trees_.arc(way, host)];
        result.cost += arc.cost;
        ++result.hops;
        result.whole = result.whole && topology.cables[arc.cable].live;
        host = arc.to;
      }
    }
  }
  if (!any_live_only) return;
  Hash hash;
  hash.add(hash_);
  for (std::uint32_t to = 0; to < count; ++to) hash.add(live_only_[to] ? 1 : 0);
  for (const auto& cable : topology.cables) hash.add(cable.live ? 1 : 0);
  hash_ = hash.value();
}

/// All hosts have two cables: walk round once in either direction. The same result as TreePair's, in
/// O(hosts).
bool Ways::compute_ring(const Topology& topology) {
  const auto count = static_cast<std::uint32_t>(topology.hosts.size());
  if (count < 2 || topology.cables.size() != count) return false;
  for (std::uint32_t h = 0; h < count; ++h)
    if (topology.first[h + 1] - topology.first[h] != 2) return false;

  // The direction of way 0, as name_ways() has it; host 0 is the first of all.
  const std::uint32_t start = topology.first[0];
  const auto onward = [&](std::uint32_t arc) {  // the other cable of the host that `arc` leads to
    const std::uint32_t back = topology.arcs[arc].back;
    const std::uint32_t begin = topology.first[topology.arcs[arc].to];
    return back == begin ? begin + 1 : begin;
  };
  std::uint32_t ascents = 0, length = 0, at = 0;
  for (std::uint32_t arc = start; length == 0 || at != 0; arc = onward(arc), ++length) {
    ascents += topology.arcs[arc].to > at ? 1 : 0;
    at = topology.arcs[arc].to;
  }
  const bool forward = 2 * ascents >= count;

  for (const unsigned way : {0u, 1u}) {
    // The arc out of self in the direction of `start`: found by walking there.
    std::uint32_t arc = forward == (way == 0) ? start : start + 1;
    for (at = 0; at != topology.self; arc = onward(arc)) at = topology.arcs[arc].to;
    const std::uint32_t out = arc;
    Way sum{out, 0, 0, true};
    for (at = topology.arcs[arc].to; at != topology.self; arc = onward(arc), at = topology.arcs[arc].to) {
      sum.cost += topology.arcs[arc].cost;
      ++sum.hops;
      sum.whole = sum.whole && topology.cables[topology.arcs[arc].cable].live;
      ways_[at][way] = sum;
    }
  }
  return true;
}

std::vector<std::uint32_t> Ways::path(const Topology& topology, std::uint32_t from, std::uint32_t to,
                                      unsigned way) const {
  TreePair trees;
  trees.compute(topology, to, live_only_[to], from);
  std::vector<std::uint32_t> result;
  for (std::uint32_t host = from; host != to; host = topology.arcs[result.back()].to) {
    if (trees.arc(way, host) == kNone) return {};
    result.push_back(trees.arc(way, host));
  }
  return result;
}

}  // namespace fabric::routing
