#include "routing/ways.hpp"

#include <algorithm>
#include <limits>

namespace fabric::routing {
namespace {

constexpr auto kNone = Topology::kNone;
constexpr auto kNever = std::numeric_limits<std::uint64_t>::max();

}  // namespace

void TreePair::compute(const Topology& topology, std::uint32_t root, bool live_only) {
  root_ = root;
  search(topology, root, live_only);
  number(topology);
  choose(topology, live_only);
  name_ways(topology);
}

/// Depth-first search with low points. A host whose subtree is joined to nothing before its parent begins a
/// block, which its parent is the root of.
void TreePair::search(const Topology& topology, std::uint32_t root, bool live_only) {
  found_.clear();
  stack_.clear();
  visits_.assign(topology.hosts.size(), {kNone, kNone, kNone, kNone});

  const auto visit = [&](std::uint32_t host, std::uint32_t entry) {
    const auto time = static_cast<std::uint32_t>(found_.size());
    visits_[host] = {time, time, entry, topology.first[host]};
    found_.push_back(host);
    stack_.push_back(host);
  };
  visit(root, kNone);
  while (!stack_.empty()) {
    const std::uint32_t host = stack_.back();
    Visit& here = visits_[host];
    if (here.next == topology.first[host + 1]) {
      stack_.pop_back();
      if (!stack_.empty()) {
        Visit& parent = visits_[stack_.back()];
        parent.low = std::min(parent.low, here.low);
      }
      continue;
    }
    const std::uint32_t a = here.next++;
    const Topology::Arc& arc = topology.arcs[a];
    if (a == here.entry || (live_only && !topology.cables[arc.cable].live)) continue;
    if (const std::uint32_t time = visits_[arc.to].time; time != kNone)
      here.low = std::min(here.low, time);
    else
      visit(arc.to, arc.back);
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

/// The cheapest neighbour below and the cheapest above, where the block's root is both. A cable to the root
/// serves one of the two only, unless it is the only cable that there is.
void TreePair::choose(const Topology& topology, bool live_only) {
  for (auto& arcs : arc_) arcs.assign(topology.hosts.size(), kNone);
  for (Block& block : blocks_) {
    const std::uint32_t size = block.end - block.begin;
    for (const bool up : {false, true}) {
      for (std::uint32_t i = 0; i < size; ++i) {
        const std::uint32_t position = up ? block.end - 1 - i : block.begin + i;
        const std::uint32_t host = order_[position];
        std::uint64_t best = kNever;
        std::uint32_t chosen = kNone, to_root = kNone;
        bool others = false;
        for (std::uint32_t a = topology.first[host]; a < topology.first[host + 1]; ++a) {
          const Topology::Arc& arc = topology.arcs[a];
          if (live_only && !topology.cables[arc.cable].live) continue;
          if (arc.to == block.root) {
            block.half_arcs += up ? 0 : 2;
            // On the way up: what the way down has left over.
            if (up ? a == arc_[0][host] : host == block.top && a == visits_[host].entry) continue;
            if (to_root == kNone || arc.cost < topology.arcs[to_root].cost) to_root = a;
            continue;
          }
          const Step& there = steps_[arc.to];
          if (there.position - block.begin >= size) continue;  // of another block
          block.half_arcs += up ? 0 : 1;
          if ((there.position > position) != up) continue;
          others = true;
          if (there.cost + arc.cost < best) best = there.cost + arc.cost, chosen = a;
        }
        // On the way down, a host of the upper half leaves its cable to the root for the way up, if it can.
        if (to_root != kNone && topology.arcs[to_root].cost <= best &&
            (up || !others || position - block.begin < size / 2))
          best = topology.arcs[to_root].cost, chosen = to_root;
        if (chosen == kNone) {  // a bridge: the top, alone in its block
          chosen = visits_[host].entry;
          best = topology.arcs[chosen].cost;
        }
        arc_[up ? 1 : 0][host] = chosen;
        steps_[host].cost = best;
      }
    }
  }
}

/// Exchanges the ways of a block where the way up is the one that people would call the first.
void TreePair::name_ways(const Topology& topology) {
  for (Block& block : blocks_) {
    std::uint32_t down = 0, up = 0;
    const auto to = [&](std::uint32_t arc) { return topology.arcs[arc].to; };
    for (std::uint32_t i = block.begin; i < block.end; ++i) {
      const std::uint32_t host = order_[i];
      down += to(arc_[0][host]) > host ? 1 : 0;
      up += to(arc_[1][host]) > host ? 1 : 0;
    }
    if (block.half_arcs == 2 * (block.end - block.begin + 1)) {  // a ring
      // The cables at the root belong to the directions as well: down goes on to the top, up to the lowest.
      const std::uint32_t root_down = topology.arcs[arc_[1][block.top]].back;
      const std::uint32_t root_up = topology.arcs[arc_[0][block.lowest]].back;
      down += to(root_down) > block.root ? 1 : 0;
      up += to(root_up) > block.root ? 1 : 0;
      if (down == up) {  // from the first host to the first of its neighbours, over the first port
        std::uint32_t first = block.root;
        for (std::uint32_t i = block.begin; i < block.end; ++i) first = std::min(first, order_[i]);
        const std::uint32_t first_down = first == block.root ? root_down : arc_[0][first];
        const std::uint32_t first_up = first == block.root ? root_up : arc_[1][first];
        // Arcs of a host are in the order of neighbour and port.
        (first_down < first_up ? down : up) += 1;
      }
    }
    block.exchanged = up > down;
    if (!block.exchanged) continue;
    for (std::uint32_t i = block.begin; i < block.end; ++i) std::swap(arc_[0][order_[i]], arc_[1][order_[i]]);
  }
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

  const bool all_live =
      std::all_of(topology.cables.begin(), topology.cables.end(), [](const auto& c) { return c.live; });
  bool any_live_only = false;
  for (std::uint32_t to = 0; to < count; ++to) {
    trees_.compute(topology, to, false);
    if (!all_live && topology.hosts[to].reachable && trees_.broken(topology)) {
      any_live_only = live_only_[to] = true;
      trees_.compute(topology, to, true);
    }
    for (const unsigned way : {0u, 1u}) {
      Way& result = ways_[to][way];
      if (to == topology.self || trees_.arc(way, topology.self) == kNone) continue;
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
  trees.compute(topology, to, live_only_[to]);
  std::vector<std::uint32_t> result;
  for (std::uint32_t host = from; host != to; host = topology.arcs[result.back()].to) {
    if (trees.arc(way, host) == kNone) return {};
    result.push_back(trees.arc(way, host));
  }
  return result;
}

}  // namespace fabric::routing
