// Who wants to be told of which events, and the telling. See subscriptions.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "fabricd/subnet/administration/query.hpp"

namespace fabric::daemon::subnet::administration {

/// A Notice with its issuer's GID (13.4.8.2), as a Report carries it.
struct Notice {
  static constexpr std::size_t kSize = 80;
  std::array<std::uint8_t, kSize> bytes{};

  /// Of an agent's trap.
  Notice(const verbs::NoticeAttribute& trap, const Gid& issuer);
  /// Of the subnet manager itself: traps 64 to 67, which are about a GID.
  Notice(std::uint16_t trap, const Gid& about, const End& manager);
};

/// Traps that the subnet manager raises (14.4.9).
enum class ManagerTrap : std::uint16_t {
  port_in_service = 64,
  port_out_of_service = 65,
  group_created = 66,
  group_deleted = 67,
};

class Subscriptions {
 public:
  struct Counters {
    std::uint64_t reports = 0, confirmed = 0, unconfirmed = 0, dropped = 0;
  };

  /// Set(InformInfo)
  [[nodiscard]] Result change(const Query& query);
  [[nodiscard]] Result records(const Query& query) const;

  /// Reports to whoever has asked for it.
  void report(const Notice& notice, std::vector<SendMad>& out);
  void on_response(std::uint32_t tid);
  void on_timeout(std::uint32_t tid, std::vector<SendMad>& out);

  /// The port is no more.
  void forget(const Gid& subscriber);
  void forget();
  [[nodiscard]] std::size_t size() const { return subscriptions_.size(); }
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  struct Subscription {
    Record inform_info;
    Gid subscriber;
    verbs::MadAddress address;
    bool trusted = false;  ///< knew the SM_Key
  };
  struct Report {
    verbs::Mad mad;
    verbs::MadAddress address;
    Gid subscriber;
    std::chrono::milliseconds timeout;
    unsigned attempts_left;
  };
  void send(Report report, std::vector<SendMad>& out);

  std::vector<Subscription> subscriptions_;
  std::map<std::uint32_t, Report> reports_;  ///< unconfirmed, by TID
  std::uint32_t next_tid_ = 1;
  Counters counters_;
};

}  // namespace fabric::daemon::subnet::administration
