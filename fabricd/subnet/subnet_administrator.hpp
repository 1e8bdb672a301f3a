// The subnet administrator of one cable as a value: answers queries (class 3, QP1) from what the subnet
// manager knows, keeps what clients tell it, and reports events to those who asked for them. How it works is
// told in subnet_administrator.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "fabricd/subnet/administration/multicast.hpp"
#include "fabricd/subnet/administration/services.hpp"
#include "fabricd/subnet/administration/subscriptions.hpp"
#include "fabricd/subnet/subnet_manager.hpp"
#include "verbs/mad.hpp"

namespace fabric::daemon::subnet {

// --- events
/// A datagram of class 3: a request, or the response to a Report.
struct AdministrationReceived {
  verbs::Mad mad;
  verbs::MadAddress source;
};
/// No response to a Report within the time that SendMad gave.
struct ReportTimedOut {
  std::uint32_t tid = 0;
};
/// A trap of one of the cable's adapters has come to the subnet manager.
struct TrapReceived {
  verbs::NoticeAttribute notice;
};
/// The subnet manager may have found something new.
struct CableChanged {};
using AdministratorEvent = std::variant<AdministrationReceived, ReportTimedOut, TrapReceived, CableChanged>;

// --- actions: SendMad for Reports, and
/// An answer: one datagram of 256 bytes, or the headers and all records of a multi-packet one, which the
/// kernel divides (RMPP).
struct Answer {
  std::vector<std::uint8_t> bytes;
  verbs::MadAddress destination;
};
using AdministratorAction = std::variant<Answer, SendMad>;

class SubnetAdministrator {
 public:
  struct Counters {
    std::uint64_t queries = 0, answers = 0, refused = 0, ignored = 0, traps = 0;
    administration::Multicast::Counters multicast;
    administration::Subscriptions::Counters subscriptions;
  };

  /// What to do now. A request that is not due an answer (a wrong SM_Key, or this end is not the cable's
  /// master) gets none. `now` never goes back.
  [[nodiscard]] std::vector<AdministratorAction> handle(TimePoint now, const View& view,
                                                        const AdministratorEvent& event);
  [[nodiscard]] Counters counters() const;

 private:
  using Gid = administration::Gid;

  void on(const AdministrationReceived& event);
  void on(const ReportTimedOut& event);
  void on(const TrapReceived& event);
  void on(const CableChanged&);

  [[nodiscard]] administration::Result carry_out(const administration::Query& query);
  void answer(const AdministrationReceived& event, administration::Result result, bool table);
  void report(administration::ManagerTrap trap, const Gid& about);
  void report_group_changes();

  administration::Multicast multicast_;
  administration::Services services_;
  administration::Subscriptions subscriptions_;
  std::optional<Gid> own_, peer_;  ///< ports in service
  std::optional<Gid> gone_;        ///< out of service, not yet told
  Counters counters_;

  // During handle().
  TimePoint now_{};
  const View* view_ = nullptr;
  std::vector<AdministratorAction> actions_;
};

}  // namespace fabric::daemon::subnet
