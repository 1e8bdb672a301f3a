#include "routing/lid_assignment.hpp"

#include <algorithm>
#include <tuple>

#include "routing/topology.hpp"

namespace fabric::routing {
namespace {

std::uint64_t hash_of(const LidTable& table) {
  Hash hash;
  for (const auto& entry : table.entries) hash.add(entry.host.value()).add(entry.index.value());
  return hash.value();
}

}  // namespace

Guid elect(std::span<const Candidate> reachable) {
  const auto elected =
      std::min_element(reachable.begin(), reachable.end(), [](const Candidate& x, const Candidate& y) {
        return std::tuple(255 - x.priority, x.guid) < std::tuple(255 - y.priority, y.guid);
      });
  return elected == reachable.end() ? Guid{} : elected->guid;
}

LidTable assign(LidTable table, std::span<const Candidate> reachable) {
  std::vector<Candidate> missing;
  for (const Candidate& candidate : reachable)
    if (index_in(table, candidate.guid) == kNoHost) missing.push_back(candidate);
  if (missing.empty()) return table;
  std::sort(missing.begin(), missing.end(), [](const Candidate& x, const Candidate& y) {
    return std::tuple(y.claim, x.guid) < std::tuple(x.claim, y.guid);
  });

  std::vector<bool> taken(kMaxHostIndex.value() + 1u);
  taken[0] = true;
  for (const auto& entry : table.entries) taken[entry.index.value()] = true;
  std::vector<LidTable::Entry> given;
  std::vector<Guid> unlucky;
  for (const Candidate& candidate : missing) {
    if (candidate.claim == Claim::none || taken[candidate.index.value()]) {
      unlucky.push_back(candidate.guid);
    } else {
      taken[candidate.index.value()] = true;
      given.push_back({candidate.guid, candidate.index});
    }
  }
  std::size_t lowest = 1;
  for (const Guid guid : unlucky) {
    while (lowest < taken.size() && taken[lowest]) ++lowest;
    if (lowest == taken.size()) {
      const auto gone = std::find_if(table.entries.begin(), table.entries.end(), [&](const auto& entry) {
        return std::none_of(reachable.begin(), reachable.end(),
                            [&](const Candidate& candidate) { return candidate.guid == entry.host; });
      });
      if (gone == table.entries.end()) break;  // as many hosts as indexes: the rest gets none
      given.push_back({guid, gone->index});
      table.entries.erase(gone);
      continue;
    }
    taken[lowest] = true;
    given.push_back({guid, HostIndex(static_cast<std::uint16_t>(lowest))});
  }
  table.entries.insert(table.entries.end(), given.begin(), given.end());
  std::sort(table.entries.begin(), table.entries.end());
  if (!given.empty()) ++table.version;
  return table;
}

HostIndex index_in(const LidTable& table, Guid host) {
  const auto found = std::lower_bound(table.entries.begin(), table.entries.end(), host,
                                      [](const LidTable::Entry& entry, Guid g) { return entry.host < g; });
  return found != table.entries.end() && found->host == host ? found->index : kNoHost;
}

HostIndex index_from_name(std::string_view name) {
  std::size_t begin = name.size();
  while (begin > 0 && name[begin - 1] >= '0' && name[begin - 1] <= '9') --begin;
  std::uint32_t value = 0;
  for (const char digit : name.substr(begin)) {
    value = value * 10 + static_cast<std::uint32_t>(digit - '0');
    if (value > kMaxHostIndex.value()) return kNoHost;
  }
  return HostIndex(static_cast<std::uint16_t>(value));
}

bool supersedes(const LidTable& x, const LidTable& y) {
  if (x.version != y.version) return x.version > y.version;
  return x.entries != y.entries && hash_of(x) > hash_of(y);
}

}  // namespace fabric::routing
