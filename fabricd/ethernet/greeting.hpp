// How the two ends of an Ethernet cable find each other and agree on a connection: a core without I/O. It is
// fed with what happens on the port and carries nothing out itself; greeting.cpp has the rules,
// docs/ethernet.md the messages.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "fabricd/ethernet/wire.hpp"
#include "verbs/cable.hpp"
#include "words/words.hpp"

namespace fabric::daemon {

struct GreetingTimers {
  using ms = std::chrono::milliseconds;
  /// Announcements begin this close to each other when the port becomes usable, then at double the distance
  /// each time...
  Duration announce_first = ms(20);
  /// ...up to this one.
  Duration announce = ms(500);
  /// While connected: only so that a third daemon on the cable is noticed.
  Duration announce_connected = ms(1000);
  /// Who has not announced itself for so long is gone.
  Duration forget = ms(3500);
  /// How long a connection may take from the first request until both queue pairs are ready. librdmacm's own
  /// timers begin at four seconds.
  Duration attempt = ms(3000);
  /// Pause after an attempt that failed.
  Duration retry = ms(200);
  /// A neighbour that was given up for dead, and is heard again within this time, was not dead.
  Duration false_alarm = std::chrono::seconds(10);
  /// A connection that holds so long shows that all is well again.
  Duration calm = std::chrono::minutes(10);
};

/// What both ends set their queue pairs to.
struct Terms {
  std::uint16_t path_mtu = 0;    ///< bytes
  std::uint8_t ack_timeout = 0;  ///< 4.096 us * 2^n
};

class Greeting {
 public:
  using Address = std::array<std::uint8_t, 16>;  ///< IPv6, network order
  using Session = std::uint32_t;                 ///< one attempt to connect and what becomes of it
  using Request = std::uint64_t;                 ///< the caller's name for a connection request that came in

  // --- events
  struct PortUsable {  ///< link up, address there, listening; also when one of the values has changed
    std::uint16_t service = 0;
    std::uint16_t path_mtu = 0;  ///< bytes
  };
  struct PortUnusable {
    verbs::CablePhase phase = verbs::CablePhase::down;
    std::string detector, reason;
  };
  struct Heard {
    Address source{};
    Announcement announcement;
  };
  struct Requested {
    Request request = 0;
    ConnectionParameters parameters;
  };
  struct RequestGone {  ///< a request that was not answered yet
    Request request = 0;
  };
  struct Replied {  ///< the other end has accepted one of the two queue pairs of Connect
    Session session = 0;
    ConnectionParameters parameters;
  };
  struct Connected {  ///< both queue pairs of the session can send and receive
    Session session = 0;
  };
  struct Failed {  ///< the session did not get as far as Connected
    Session session = 0;
    std::string reason;
  };
  struct Lost {  ///< the session, connected or not, is of no more use
    std::string detector, reason;
  };
  struct Stopped {};
  struct TimerExpired {};  ///< next_timer() has come
  using Event = std::variant<PortUsable, PortUnusable, Heard, Requested, RequestGone, Replied, Connected,
                             Failed, Lost, Stopped, TimerExpired>;

  // --- actions
  struct Announce {
    Announcement announcement;
  };
  struct Connect {  ///< make two queue pairs and request both connections; then Replied twice, or Failed
    Session session = 0;
    Address address{};
    std::uint16_t service = 0;
    ConnectionParameters parameters;  ///< of the data queue pair
  };
  struct Establish {  ///< both replies to Connect are good: go to RTS; then Connected or Failed
    Session session = 0;
    Terms terms;
  };
  struct Accept {  ///< make two queue pairs, go to RTS and accept; then Connected or Failed
    Session session = 0;
    Request data = 0, control = 0;
    ConnectionParameters parameters;  ///< of the data queue pair
    Terms terms;
  };
  struct Reject {
    Request request = 0;
    Rejection rejection;
  };
  struct GiveUp {  ///< take the session down: the callbacks, then the queue pairs and connections
    Session session = 0;
    std::string detector, reason;
  };
  struct Up {  ///< tell the owner
    verbs::Identity neighbour;
    Terms terms;
  };
  using Action = std::variant<Announce, Connect, Establish, Accept, Reject, GiveUp, Up>;

  struct Counters {
    std::uint64_t announcements_sent = 0, announcements_received = 0;
    std::uint64_t attempts = 0, requests = 0, rejections_sent = 0, connections = 0, given_up = 0;
    std::uint64_t false_alarms = 0;  ///< neighbours given up for dead that were not
  };

  /// Acknowledgement timeouts, as in Terms, to begin with: 17 ms for an adapter, 268 ms for one in software,
  /// which answers when its processor has time; and the longest, 1.1 s. A dead cable shows after four.
  static constexpr std::uint8_t kAdapterTimeout = 12, kSoftwareTimeout = 16, kLongestTimeout = 18;

  explicit Greeting(verbs::Identity self, std::uint8_t ack_timeout = kAdapterTimeout,
                    GreetingTimers timers = {});

  /// What follows from the event, in order. `now` never goes back.
  std::vector<Action> handle(TimePoint now, const Event& event);
  /// When TimerExpired is due; nothing: never.
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

  [[nodiscard]] verbs::CablePhase phase() const;
  [[nodiscard]] std::string reason() const;  ///< of the phase: a sentence, empty where connected
  /// The only one that announces itself, as far as known.
  [[nodiscard]] std::optional<verbs::Identity> neighbour() const;
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  enum class State : std::uint8_t {
    unusable,    ///< the port is
    looking,     ///< announcing, listening; also where what is heard is refused
    connecting,  ///< this end has requested
    accepting,   ///< a request has come; complete with the second one, then accepted
    connected,
    stopped,
  };
  struct Announcer {
    Address source{};
    Announcement announcement;
    TimePoint heard;
  };
  struct Half {  ///< the first request of a pair
    Request request = 0;
    ConnectionParameters parameters;
  };

  void on(const PortUsable& event);
  void on(const PortUnusable& event);
  void on(const Heard& event);
  void on(const Requested& event);
  void on(const RequestGone& event);
  void on(const Replied& event);
  void on(const Connected& event);
  void on(const Failed& event);
  void on(const Lost& event);
  void on(const Stopped&);
  void on(const TimerExpired&);

  void enter(State state);
  void begin_looking();
  /// The attempt: gives up and pauses.
  void fail(const std::string& reason);
  void give_up(const std::string& detector, const std::string& reason);
  void announce(bool leaving);
  void reject(Request request, const std::string& reason);
  /// Forgets who is silent, then refuses, waits or connects.
  void consider();
  [[nodiscard]] std::string refusal() const;
  [[nodiscard]] bool connects(Guid other) const { return self_.host < other; }
  [[nodiscard]] ConnectionParameters parameters(ConnectionParameters::Purpose purpose) const;
  [[nodiscard]] Terms terms_with(const ConnectionParameters& other) const;
  void check_mtu(std::uint16_t others);
  void learn_from(const std::string& detector);
  [[nodiscard]] bool in_session() const;
  [[nodiscard]] std::optional<TimePoint> forgotten_at(const Announcer& announcer) const;

  const verbs::Identity self_;
  const GreetingTimers timers_;
  Counters counters_;

  TimePoint now_;
  std::vector<Action> actions_;

  State state_ = State::unusable;
  PortUsable port_;
  PortUnusable trouble_;
  std::vector<Announcer> announcers_;
  TimePoint announce_at_, retry_at_, deadline_;
  Duration announce_after_{};
  std::string last_failure_;  ///< of an attempt, since the port is usable

  // Of the detection of dead cables, over all sessions.
  const std::uint8_t first_ack_timeout_;
  std::uint8_t ack_timeout_;
  struct Suspect {
    verbs::Identity identity;
    TimePoint given_up;
  };
  std::optional<Suspect> suspect_;

  // Of the present session.
  Session session_ = 0;
  verbs::Identity peer_;
  std::uint32_t attempt_ = 0;   ///< number of the one who connects
  std::uint16_t peer_mtu_ = 0;  ///< bytes
  Terms terms_;
  TimePoint connected_at_;
  std::optional<Half> half_;  ///< while accepting: the request that waits for its other half
  std::optional<ConnectionParameters> replied_;  ///< while connecting: the first reply
};

}  // namespace fabric::daemon
