// Multicast groups and their members. See multicast.cpp.
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "fabricd/subnet/administration/query.hpp"

namespace fabric::daemon::subnet::administration {

/// MCMemberRecord: where its components are.
namespace member {
inline constexpr std::size_t kSize = 52, kMgidAt = 0, kPortGidAt = 16, kQkeyAt = 32, kMlidAt = 36,
                             kMtuAt = 38, kTrafficClassAt = 39, kPkeyAt = 40, kRateAt = 42, kLifeAt = 43,
                             kSlAt = 44, kHopLimitAt = 47, kScopeAt = 48, kProxyAt = 49;
}  // namespace member

class Multicast {
 public:
  struct Membership {
    std::uint8_t state = 0;  ///< bits of JoinState
    bool by_proxy = false;   ///< another port has joined it
  };
  struct Group {
    Record record;                      ///< MCMemberRecord without port and join state
    std::map<Gid, Membership> members;  ///< by port GID
    bool permanent = false;             ///< the IPoIB broadcast group: there without members
  };
  /// A group that has come or gone.
  struct Change {
    Gid mgid;
    bool created = false;
  };
  struct Counters {
    std::uint64_t joins = 0, leaves = 0;
  };

  /// The IPoIB broadcast group exists from the start, with the cable's own MTU and rate.
  void make_broadcast_group(const View& view);
  [[nodiscard]] Result records(const Query& query) const;
  [[nodiscard]] Result join(const Query& query);
  [[nodiscard]] Result leave(const Query& query);
  [[nodiscard]] const Group* find(const Gid& mgid) const;
  /// The port is no more; groups go with their last member.
  void forget(const Gid& port);
  void forget();
  /// Since the last call.
  [[nodiscard]] std::vector<Change> take_changes() { return std::exchange(changes_, {}); }
  [[nodiscard]] std::size_t size() const { return groups_.size(); }
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  using Groups = std::map<Gid, Group>;
  [[nodiscard]] Status create(const Query& query, Groups::iterator& made);
  [[nodiscard]] std::optional<std::uint16_t> free_mlid() const;
  /// Ends a group that nobody needs any more. The iterator after it.
  Groups::iterator prune(Groups::iterator group);

  Groups groups_;
  std::vector<Change> changes_;
  Counters counters_;
};

}  // namespace fabric::daemon::subnet::administration
