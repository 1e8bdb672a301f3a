// Which host has which LID block. One host is elected among those that can reach each other; it gives every
// host without an index one, and floods the table. Everybody keeps the table, so whoever is elected next goes
// on with the same one.
//
// Rules. An index stays with its host as long as the table lists it. New hosts get what they claim: what they
// had before (two fabrics are joined: who is in the winning table stays, the others keep their index where it
// is free), what their operator wishes, the number at the end of their name; whoever claims nothing, or
// something taken, gets the lowest free one. Of several hosts with one claim the stronger claim wins, then
// the lower GUID. So joining two fabrics moves one host per index that both used, and none otherwise.
//
// Of two tables the one with the higher version counts; of the same version (two fabrics that never met), the
// one with the larger hash: any rule will do that all apply alike.
#pragma once

#include <span>
#include <string_view>

#include "routing/messages.hpp"
#include "routing/node.hpp"

namespace fabric::routing {

struct Candidate {
  Guid guid;
  std::uint8_t priority = 0;
  Claim claim = Claim::none;
  HostIndex index = kNoHost;
};

/// Who assigns: the highest priority, then the lower GUID, as of two subnet managers. Zero if there is
/// nobody.
Guid elect(std::span<const Candidate> reachable);

/// `table` with an index for each of the `reachable`; the same version if nothing was to be done, else the
/// next. Only when all indexes are in use, hosts that are not reachable lose theirs.
LidTable assign(LidTable table, std::span<const Candidate> reachable);

/// kNoHost if there is none.
HostIndex index_in(const LidTable& table, Guid host);
/// The number at the end of a name, if it can be an index: "node7" is 7, "node-07" is 7; else kNoHost.
HostIndex index_from_name(std::string_view name);
/// x replaces y.
bool supersedes(const LidTable& x, const LidTable& y);

}  // namespace fabric::routing
