// The subnet manager of one cable as a value: events in, actions out, no I/O, no clock, no thread.
// How it works is told in subnet_manager.cpp.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "verbs/mad.hpp"
#include "words/words.hpp"

namespace fabric::daemon::subnet {

struct Settings {
  Guid host;              ///< of this daemon
  Guid port_guid;         ///< of the own port; known before anything is asked, since it decides elections
  std::uint8_t port = 1;  ///< number of the own port on its adapter, from 1
  std::uint8_t priority = 8;
  std::map<Guid, Lid> base_lids;  ///< ring-wide agreement, by host GUID; may be empty or partial
  std::uint8_t lmc = 1;
  /// Protects both ports against being set by managers that do not know it. 0: none.
  std::uint64_t m_key = 0;
  bool manage = true;  ///< false: another program of this host manages the cable; only watch
  std::uint32_t first_tid = 1;
};

// --- events
struct Start {};
struct Stop {};
/// The adapter says that something about the port changed. `error`: the link was lost, or came back from
/// that.
struct PortEvent {
  bool error = false;
};
struct MadReceived {
  verbs::Mad mad;
  verbs::MadAddress source;
};
/// No answer within the time that SendMad gave.
struct SendTimedOut {
  std::uint32_t tid = 0;
};
struct SettingsChanged {
  Settings settings;
};
/// A fabricd at the other end has introduced itself.
struct NeighbourKnown {
  Guid host;
};
struct TimerExpired {};
using Event = std::variant<Start, Stop, PortEvent, MadReceived, SendTimedOut, SettingsChanged, NeighbourKnown,
                           TimerExpired>;

// --- actions
struct SendMad {
  verbs::Mad mad;
  verbs::MadAddress destination;
  std::chrono::milliseconds timeout{0};  ///< 0: no answer will come
};
struct Notice {  ///< for the log
  enum class Level : std::uint8_t { info, warning, error } level = Level::info;
  std::string text;
};
using Action = std::variant<SendMad, Notice>;

enum class Stage : std::uint8_t {
  stopped,
  down,         ///< no link
  discovering,  ///< who is at the other end?
  electing,     ///< who of the two is master?
  configuring,  ///< as master: LIDs, prefix, MTU, VLs
  arming,
  activating,
  settled,  ///< as master: done, watching. Otherwise: waiting for, or watching, the master at the other end
  backing_off,  ///< the other end does not answer, or refuses; begins anew soon
  refused,      ///< nothing to manage: the port is cabled to itself, or both ends have the same GUID
};
[[nodiscard]] std::string_view to_string(Stage stage);

/// One port of the cable, as far as it is known.
struct End {
  std::optional<verbs::NodeInfo> node;
  std::optional<verbs::PortInfo> port;
  std::string description;
  // Tables that only the administrator wants, by block; read when the cable is Active.
  std::map<std::uint16_t, verbs::PkeyTable> pkeys;
  std::map<std::uint16_t, verbs::GuidInfo> guids;
  std::map<std::uint16_t, verbs::SmpAttribute> vl_arbitration;  ///< blocks 1, 2: low priority; 3, 4: high
  std::optional<verbs::SlToVlTable> sl_to_vl;
};

struct Counters {
  std::uint64_t sweeps = 0, requests = 0, responses = 0, timeouts = 0, errors = 0, ignored = 0, traps = 0,
                handovers = 0, elections = 0;
};

/// What is known of the cable; for the handshake, the administrator, and for people.
struct View {
  Stage stage = Stage::stopped;
  verbs::SmState state = verbs::SmState::not_active;
  TimePoint state_since{};
  std::uint8_t priority = 0;
  std::string reason;  ///< of the stage, where it needs one
  End own, peer;
  std::optional<verbs::SmInfo> peer_sm;
  std::uint64_t prefix = 0;
  TimePoint peer_seen{};           ///< last answer
  unsigned bring_up_requests = 0;  ///< SMP requests of the last bring-up, repetitions included
  Counters counters;

  Lid planned_own_lid, planned_peer_lid;  ///< as master, from `configuring` on

  /// Both ports are Active and have LIDs: GMPs and connections work.
  [[nodiscard]] bool active() const;
  [[nodiscard]] Lid own_lid() const { return own.port ? own.port->lid() : kNoLid; }
  [[nodiscard]] Lid peer_lid() const { return peer.port ? peer.port->lid() : kNoLid; }
  /// In words, where the link is slower than both ends can; else empty.
  [[nodiscard]] std::string slow_link() const;
  /// Both ends are ports of one adapter (or the very same port).
  [[nodiscard]] bool to_oneself() const;
};

/// The prefix of the cable between two ports: the same at both ends and after every restart, different from
/// every other cable's (56 bits of hash), globally scoped (fd00::/8) so that nobody takes it for link-local.
[[nodiscard]] std::uint64_t cable_prefix(Guid one, Guid other);

/// Base LIDs for the two ends of a cable as long as there is no agreement, first `one`'s: in 0xB000..0xBFFF,
/// aligned to their LMC, the same whichever end computes them.
[[nodiscard]] std::pair<Lid, Lid> provisional_lids(Guid one, Guid other, std::uint8_t lmc);

class SubnetManager {
 public:
  explicit SubnetManager(Settings settings);
  /// What to do now. `now` never goes back.
  [[nodiscard]] std::vector<Action> handle(TimePoint now, const Event& event);
  /// When TimerExpired is due, if nothing else happens before.
  [[nodiscard]] std::optional<TimePoint> next_timer() const;
  [[nodiscard]] const View& view() const { return view_; }

 private:
  enum class Target : std::uint8_t { own, peer };
  struct Request {
    Target target = Target::own;
    verbs::MadMethod method = verbs::MadMethod::get;
    verbs::SmAttribute attribute = verbs::SmAttribute::node_info;
    std::uint32_t modifier = 0;
    verbs::SmpAttribute payload;
    bool blocking = false;  ///< the stage waits for it
    unsigned attempt = 0;
  };
  // --- events
  void on(const Start&);
  void on(const Stop&);
  void on(const PortEvent& event);
  void on(const MadReceived& event);
  void on(const SendTimedOut& event);
  void on(const SettingsChanged& event);
  void on(const NeighbourKnown& event);
  void on(const TimerExpired&);

  // --- what the other SM asks
  void answer_sm_info(const verbs::Mad& request, const verbs::MadAddress& source);
  [[nodiscard]] bool obey(verbs::SmControl control, const verbs::SmInfo& sender);
  void on_trap(const verbs::Mad& trap, const verbs::MadAddress& source);

  // --- answers to what this one asked
  void on_response(const Request& request, const verbs::Mad& response);
  void on_port_info(const Request& request, const verbs::PortInfo& info);
  void on_peer_sm_info(const Request& request, const verbs::SmInfo& info);
  void on_pkey_table(const Request& request, const verbs::PkeyTable& table);
  void on_sl_to_vl(Target target, const verbs::SlToVlTable& table);
  void on_unanswered(const Request& request);

  // --- the sweep: each enters a stage and asks what that stage waits for
  void enter(Stage stage, std::string reason = {});
  void become(verbs::SmState state);
  void go_down();
  void sweep(bool elect);
  void elect();
  void configure();
  void arm();
  void activate();
  void settle();
  void back_off(std::string reason);
  void advance();  ///< to the next stage, when nothing is outstanding

  // --- watching
  void poll();
  void take_inventory();
  [[nodiscard]] Duration poll_interval() const;

  // --- plans
  [[nodiscard]] End& end(Target target) { return target == Target::own ? view_.own : view_.peer; }
  [[nodiscard]] const End& end(Target target) const { return target == Target::own ? view_.own : view_.peer; }
  [[nodiscard]] std::pair<Lid, Lid> plan_lids() const;  ///< own, peer
  [[nodiscard]] verbs::PortInfo plan(Target target) const;
  [[nodiscard]] bool must_set(Target target) const;
  [[nodiscard]] static std::size_t index(Target target) { return target == Target::own ? 0 : 1; }
  void follow_plan();  ///< configures anew where a settled master's plan has changed
  [[nodiscard]] bool peer_wins() const;
  [[nodiscard]] verbs::SmInfo own_sm_info() const;

  // --- requests
  void ask(Request request);
  void set_port(Target target, const verbs::PortInfo& info);
  [[nodiscard]] bool asking(Target target, verbs::SmAttribute attribute) const;
  [[nodiscard]] bool blocked() const;
  void note(Notice::Level level, std::string text);

  Settings settings_;
  View view_;
  Guid neighbour_host_, neighbour_port_;  ///< who has introduced itself, and on which port
  TimePoint now_{};
  std::uint32_t next_tid_;
  std::map<std::uint32_t, Request> requests_;  ///< by TID
  std::vector<Action> actions_;
  /// By target, PortInfo::given: what was asked for, and what the port made of it.
  std::array<verbs::PortInfo, 2> planned_, accepted_;
  TimePoint insist_at_{};  ///< what a port has changed is not set again before
  TimePoint poll_at_{};
  TimePoint stage_since_{};
  TimePoint master_seen_{};     ///< as standby: last answer of the master
  TimePoint handover_until_{};  ///< no second HANDOVER before
  bool reregister_ = false;     ///< clients have to tell the administrator again
  unsigned polls_ = 0;
  bool bringing_up_ = false;
  unsigned sweep_requests_ = 0;  ///< since the present sweep began
};

}  // namespace fabric::daemon::subnet
