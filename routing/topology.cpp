#include "routing/topology.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <unordered_map>

namespace fabric::routing {
namespace {

constexpr auto kNone = Topology::kNone;

/// A host's word on one of its cables, with the other end's word if it speaks of the same one.
struct Word {
  std::uint32_t from = kNone, to = kNone;
  const Link* link = nullptr;
  const Link* other = nullptr;  ///< the other end's link at that port, whatever it is
  bool confirmed = false;       ///< `other` is this cable
  [[nodiscard]] bool live() const { return confirmed && link->up && other->up; }
};

const Link* link_at(const Advertisement& advertisement, PortIndex port) {
  const auto& links = advertisement.links;
  const auto found = std::lower_bound(links.begin(), links.end(), port,
                                      [](const Link& link, PortIndex p) { return link.port < p; });
  return found != links.end() && found->port == port ? &*found : nullptr;
}

/// Marks all that can be reached from `start` over words that `usable` accepts.
template <class Usable>
std::vector<bool> reach(std::uint32_t start, std::span<const std::uint32_t> first,
                        std::span<const Word> words, Usable&& usable) {
  std::vector<bool> marked(first.size() - 1);
  std::vector<std::uint32_t> queue{start};
  marked[start] = true;
  for (std::size_t i = 0; i < queue.size(); ++i)
    for (std::uint32_t w = first[queue[i]]; w < first[queue[i] + 1]; ++w)
      if (!marked[words[w].to] && usable(words[w])) {
        marked[words[w].to] = true;
        queue.push_back(words[w].to);
      }
  return marked;
}

}  // namespace

std::uint32_t Topology::find(Guid guid) const {
  for (std::uint32_t h = 0; h < hosts.size(); ++h)
    if (hosts[h].guid == guid) return h;
  return kNone;
}

std::uint64_t Topology::hash() const {
  Hash hash;
  hash.add(hosts.size());
  for (const Host& host : hosts) hash.add(host.guid.value()).add(host.index.value());
  for (const Cable& cable : cables) {
    for (const Cable::End* end : {&cable.a, &cable.b})
      hash.add(end->host).add(end->port.value()).add(end->cost);
  }
  return hash.value();
}

Topology make_topology(Guid self, std::span<const Advertisement* const> advertisements,
                       const LidTable& table) {
  const auto count = static_cast<std::uint32_t>(advertisements.size());

  // Hosts in the order of the map.
  std::vector<Topology::Host> all(count);
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  for (std::uint32_t i = 0; i < count; ++i) {
    all[i].guid = advertisements[i]->origin;
    const auto entry = std::lower_bound(table.entries.begin(), table.entries.end(), all[i].guid,
                                        [](const LidTable::Entry& e, Guid guid) { return e.host < guid; });
    if (entry != table.entries.end() && entry->host == all[i].guid) all[i].index = entry->index;
  }
  std::sort(order.begin(), order.end(), [&](std::uint32_t x, std::uint32_t y) {
    const auto key = [](const Topology::Host& host) {
      return std::tuple(host.index == kNoHost, host.index, host.guid);
    };
    return key(all[x]) < key(all[y]);
  });
  std::unordered_map<Guid, std::uint32_t> by_guid;
  by_guid.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) by_guid.emplace(all[order[i]].guid, i);

  // What each host says, and what the other end says to it.
  std::vector<std::uint32_t> first(count + 1);
  std::vector<Word> words;
  for (std::uint32_t h = 0; h < count; ++h) {
    first[h] = static_cast<std::uint32_t>(words.size());
    const Advertisement& advertisement = *advertisements[order[h]];
    for (const Link& link : advertisement.links) {
      const auto to = by_guid.find(link.neighbour);
      if (to == by_guid.end() || to->second == h) continue;
      Word word{h, to->second, &link, link_at(*advertisements[order[to->second]], link.neighbour_port)};
      word.confirmed = word.other != nullptr && word.other->neighbour == advertisement.origin &&
                       word.other->neighbour_port == link.port;
      words.push_back(word);
    }
  }
  first[count] = static_cast<std::uint32_t>(words.size());

  const std::uint32_t me = by_guid.at(self);
  const auto reachable = reach(me, first, words, [](const Word& word) { return word.live(); });

  // Known cables, one entry each. A cable that only one end speaks of is added to the other end's as well.
  std::vector<Topology::Cable> known;
  const auto end_of = [](std::uint32_t host, const Link& link) {
    return Topology::Cable::End{host, link.port, link.cost, link.up};
  };
  const auto drained = [&](std::uint32_t host) { return advertisements[order[host]]->drained; };
  for (const Word& word : words) {
    const bool here = reachable[word.from], there = reachable[word.to];
    if (word.confirmed ? word.from > word.to : word.other != nullptr && here == there) continue;
    // Here the other end says the same (and this is the first of the two), says nothing of that port, or is
    // not to be believed.
    if (!word.confirmed && there && !here) continue;
    Topology::Cable cable;
    cable.a = end_of(word.from, *word.link);
    cable.b = word.confirmed
                  ? end_of(word.to, *word.other)
                  : Topology::Cable::End{word.to, word.link->neighbour_port, word.link->cost, false};
    cable.rate = word.confirmed ? std::min(word.link->rate, word.other->rate) : word.link->rate;
    cable.live = word.live() && here;
    if (drained(word.from) || drained(word.to)) {
      cable.a.cost += kDrainedCost;
      cable.b.cost += kDrainedCost;
    }
    if (cable.a.host > cable.b.host) std::swap(cable.a, cable.b);
    known.push_back(cable);
  }
  std::sort(known.begin(), known.end(), [](const auto& x, const auto& y) {
    const auto key = [](const Topology::Cable& c) {
      return std::tuple(c.a.host, c.b.host, c.a.port, c.b.port, !c.live);
    };
    return key(x) < key(y);
  });

  // Only what is joined to this host by known cables.
  std::vector<std::uint32_t> parent(count);
  std::iota(parent.begin(), parent.end(), 0u);
  const auto root = [&](std::uint32_t h) {
    while (parent[h] != h) h = parent[h] = parent[parent[h]];
    return h;
  };
  for (const auto& cable : known) parent[root(cable.a.host)] = root(cable.b.host);

  Topology result;
  std::vector<std::uint32_t> number(count, kNone);
  for (std::uint32_t h = 0; h < count; ++h) {
    if (root(h) != root(me)) continue;
    number[h] = static_cast<std::uint32_t>(result.hosts.size());
    result.hosts.push_back(all[order[h]]);
    result.hosts.back().reachable = reachable[h];
  }
  result.self = number[me];
  for (auto& cable : known) {
    if (number[cable.a.host] == kNone) continue;
    cable.a.host = number[cable.a.host];
    cable.b.host = number[cable.b.host];
    result.cables.push_back(cable);
  }

  const auto hosts = static_cast<std::uint32_t>(result.hosts.size());
  result.first.assign(hosts + 1, 0);
  for (const auto& cable : result.cables) {
    ++result.first[cable.a.host + 1];
    ++result.first[cable.b.host + 1];
  }
  std::partial_sum(result.first.begin(), result.first.end(), result.first.begin());
  result.arcs.resize(result.cables.size() * 2);
  auto place = result.first;
  for (std::uint32_t c = 0; c < result.cables.size(); ++c) {
    const auto& cable = result.cables[c];
    result.arcs[place[cable.a.host]++] = {cable.b.host, c, cable.a.cost};
    result.arcs[place[cable.b.host]++] = {cable.a.host, c, cable.b.cost};
  }
  for (std::uint32_t h = 0; h < hosts; ++h)
    std::sort(result.arcs.begin() + result.first[h], result.arcs.begin() + result.first[h + 1],
              [&](const Topology::Arc& x, const Topology::Arc& y) {
                return std::tuple(x.to, result.near_end(h, x).port, x.cable) <
                       std::tuple(y.to, result.near_end(h, y).port, y.cable);
              });
  std::vector<std::uint32_t> other(result.cables.size(), kNone);
  for (std::uint32_t a = 0; a < result.arcs.size(); ++a) {
    auto& seen = other[result.arcs[a].cable];
    if (seen == kNone) {
      seen = a;
    } else {
      result.arcs[a].back = seen;
      result.arcs[seen].back = a;
    }
  }
  return result;
}

Weakness find_weakness(const Topology& topology) {
  const auto count = topology.hosts.size();
  Weakness weakness{std::vector<bool>(count), std::vector<bool>(topology.cables.size())};
  if (topology.self >= count) return weakness;  // no map yet
  // Depth-first search with low points (Tarjan 1972), without recursion.
  std::vector<std::uint32_t> found(count, kNone), low(count), via(count, kNone), next(count);
  std::vector<std::uint32_t> stack{topology.self};
  std::uint32_t time = 0, children = 0;
  found[topology.self] = low[topology.self] = time++;
  next[topology.self] = topology.first[topology.self];
  while (!stack.empty()) {
    const std::uint32_t h = stack.back();
    if (next[h] < topology.first[h + 1]) {
      const auto& arc = topology.arcs[next[h]++];
      if (!topology.cables[arc.cable].live || arc.cable == via[h]) continue;
      if (found[arc.to] == kNone) {
        found[arc.to] = low[arc.to] = time++;
        via[arc.to] = arc.cable;
        next[arc.to] = topology.first[arc.to];
        stack.push_back(arc.to);
      } else {
        low[h] = std::min(low[h], found[arc.to]);
      }
      continue;
    }
    stack.pop_back();
    if (stack.empty()) break;
    const std::uint32_t p = stack.back();
    low[p] = std::min(low[p], low[h]);
    if (low[h] > found[p]) weakness.cables[via[h]] = true;
    if (p == topology.self)
      ++children;
    else if (low[h] >= found[p])
      weakness.hosts[p] = true;
  }
  weakness.hosts[topology.self] = children > 1;
  return weakness;
}

}  // namespace fabric::routing
