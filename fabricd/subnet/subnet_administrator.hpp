// The subnet administrator of one cable as a value: answers queries (class 3, QP1) from what the subnet
// manager knows, and keeps what clients tell it. How it works is told in subnet_administrator.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "fabricd/subnet/subnet_manager.hpp"
#include "verbs/mad.hpp"

namespace fabric::daemon::subnet {

using Gid = std::array<std::uint8_t, 16>;
using Record = std::vector<std::uint8_t>;

/// An answer: one datagram of 256 bytes, or the headers and all records of a multi-packet one, which the
/// kernel divides (RMPP).
struct Answer {
  std::vector<std::uint8_t> bytes;
};

class SubnetAdministrator {
 public:
  struct Counters {
    std::uint64_t queries = 0, answers = 0, refused = 0, ignored = 0, joins = 0, leaves = 0;
  };

  /// Nothing where no answer is due: not a request, a wrong SM_Key, or this end is not the cable's master.
  [[nodiscard]] std::optional<Answer> handle(const View& view, const verbs::Mad& request);
  /// Forgets what clients have said: another manager is master now, or the link is gone.
  void forget();
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  /// What clients have in common who send to one multicast GID.
  struct Group {
    Record record;                        ///< MCMemberRecord without port and join state
    std::map<Gid, std::uint8_t> members;  ///< join state by port GID
    bool permanent = false;               ///< the IPoIB broadcast group: there without members
  };
  struct Query;
  struct Result;

  [[nodiscard]] Result look_up(const Query& query) const;
  [[nodiscard]] Result paths(const Query& query) const;
  [[nodiscard]] Result memberships(const Query& query) const;
  [[nodiscard]] Result join(const Query& query);
  [[nodiscard]] Result leave(const Query& query);
  void make_broadcast_group(const View& view);

  std::map<Gid, Group> groups_;
  Counters counters_;
};

/// Code of a rate (specification, table of PathRecord) for a link's width and speed; 0 where there is none.
[[nodiscard]] std::uint8_t rate_code(const verbs::PortInfo& info);

}  // namespace fabric::daemon::subnet
