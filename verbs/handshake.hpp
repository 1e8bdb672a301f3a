// The handshake of two fabricds over QP1 of one cable, as a value: events in, actions out, no I/O, no clock,
// no thread. How it works is told in handshake.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "verbs/cable.hpp"
#include "words/words.hpp"

namespace fabric::verbs::handshake {

/// One attempt of one daemon to connect this cable, with queue pairs of its own. Numbers grow within an
/// incarnation; 0 is none.
struct Session {
  std::uint32_t incarnation = 0;
  std::uint32_t number = 0;
  bool operator==(const Session&) const = default;
};

/// Where the sender of a message is.
enum class Progress : std::uint8_t {
  seeking = 0,  ///< no queue pairs yet
  open = 1,     ///< queue pairs in INIT, with receive buffers; their numbers are in the message
  ready = 2,    ///< they can send to and receive from the other end's (RTS)
  up = 3,       ///< and the other end has said the same: in use
};
[[nodiscard]] std::string_view to_string(Progress progress);

enum class Kind : std::uint8_t { hello = 1, goodbye = 2, refusal = 3 };

struct QueuePairAddress {
  Qpn qpn;
  std::uint32_t psn = 0;  ///< first one that this end sends, 24 bits
  bool operator==(const QueuePairAddress&) const = default;
};

struct Message {
  Kind kind = Kind::hello;
  Progress progress = Progress::seeking;
  Identity identity;
  Session session;  ///< the sender's
  Session
      peer_session;  ///< the receiver's: the last the sender has heard of; from `ready` on the one it uses
  QueuePairAddress data, control;  ///< from `open` on
  std::uint8_t mtu = 0;            ///< enum ibv_mtu
  std::string reason;              ///< of a goodbye or a refusal, at most 63 bytes
};

inline constexpr std::size_t kMessageSize = 216;  ///< data of a vendor class MAD
inline constexpr std::size_t kTextSize = 63;
/// Of the protocol between neighbours; Identity::version.
inline constexpr std::uint16_t kVersion = 1;

/// Texts that are too long are cut.
void encode(const Message& message, std::span<std::uint8_t, kMessageSize> bytes);
/// Nothing for what is not a message of this protocol. A message of another version decodes as far as its
/// sender and kind, which no version moves.
[[nodiscard]] std::optional<Message> decode(std::span<const std::uint8_t, kMessageSize> bytes);

// --- events
struct LinkActive {  ///< datagrams can travel
  std::uint8_t mtu = 0;
};
struct LinkLost {
  std::string detector, reason;
};
struct Received {
  Message message;
};
struct Opened {
  QueuePairAddress data, control;
};
struct Connected {};
struct Failed {  ///< of Open or Connect
  std::string reason;
};
struct Reset {
  std::string detector, reason;
};
struct Stop {};
struct TimerExpired {};
using Event =
    std::variant<LinkActive, LinkLost, Received, Opened, Connected, Failed, Reset, Stop, TimerExpired>;

// --- actions, in order
struct Send {
  Message message;
};
struct Open {};   ///< make queue pairs, to INIT, with receive buffers; then Opened or Failed
struct Connect {  ///< to RTS towards this message's queue pairs; then Connected or Failed
  Message peer;
  std::uint8_t mtu = 0;  ///< the smaller of both ends'
};
struct Up {
  Identity neighbour;
};
struct Down {  ///< destroy the queue pairs; comes once after every Opened
  std::string detector, reason;
};
struct Met {  ///< a fabricd at the other end has introduced itself
  Identity neighbour;
};
struct Refused {
  std::string reason;
};
using Action = std::variant<Send, Open, Connect, Up, Down, Met, Refused>;

enum class State : std::uint8_t { idle, seeking, opening, open, connecting, ready, up, holding, refused };

struct Counters {
  std::uint64_t sent = 0, received = 0, stale = 0, completed = 0, dropped = 0, refused = 0;
};

class Handshake {
 public:
  explicit Handshake(Identity own);
  [[nodiscard]] std::vector<Action> handle(TimePoint now, const Event& event);
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] const std::optional<Identity>& neighbour() const { return neighbour_; }
  [[nodiscard]] const Counters& counters() const { return counters_; }
  /// Hellos since the link is there that nobody has answered.
  [[nodiscard]] unsigned unanswered() const { return unanswered_; }

 private:
  void on(const LinkActive& event);
  void on(const LinkLost& event);
  void on(const Received& event);
  void on(const Opened& event);
  void on(const Connected&);
  void on(const Failed& event);
  void on(const Reset& event);
  void on(const Stop&);
  void on(const TimerExpired&);

  void on_hello(const Message& message);
  void on_goodbye(const Message& message);
  void on_refusal(const Message& message);
  [[nodiscard]] std::optional<std::string> objection(const Message& message) const;
  void consider();  ///< as open: can these queue pairs be connected to what the peer has shown?
  void complete();
  void enter(State state);
  void drop(const std::string& detector, const std::string& reason);
  void seek();
  void refuse(const std::string& reason);
  void send_hello();
  [[nodiscard]] Message message(Kind kind) const;
  [[nodiscard]] Progress progress() const;
  [[nodiscard]] bool has_queue_pairs() const;

  Identity own_;
  State state_ = State::idle;
  TimePoint now_{};
  std::uint32_t number_ = 1;  ///< of the present session, which may not have queue pairs yet
  std::uint8_t mtu_ = 0;
  QueuePairAddress data_, control_;
  std::optional<Message> peer_;  ///< its last hello
  std::optional<Identity> neighbour_;
  std::optional<TimePoint> timer_;
  Duration retry_{};
  unsigned unanswered_ = 0;
  std::vector<Action> actions_;
  Counters counters_;
};

}  // namespace fabric::verbs::handshake
