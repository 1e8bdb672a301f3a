// The control plane of one host as a value: events in, actions out, no I/O, no clock, no thread. The daemon
// and the simulator run this same class.
//
// It is composed of cores of their own (adjacency, link state, LID assignment, ways), each in a file of its
// own. docs/routing.md is the specification.
//
// Use: construct; call handle(now, TimerExpired{}) once to start; from then on one handle() per event, and
// TimerExpired whenever next_timer() has come. Carry out the returned actions in their order. Everything
// else is const inspection, for people.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "routing/forwarding_state.hpp"
#include "words/words.hpp"

namespace fabric::routing {

/// A neighbour as the cable's handshake has shown it.
struct Neighbour {
  Guid host;
  std::string name;
  std::uint8_t port = 0;          ///< its PortIndex value
  std::uint32_t incarnation = 0;  ///< differs after each start of its daemon
};

/// GUID to host index, agreed by all: what the elected host assigned. Kept over restarts.
struct LidTable {
  std::uint64_t version = 0;
  struct Entry {
    Guid host;
    HostIndex index;
    auto operator<=>(const Entry&) const = default;
  };
  std::vector<Entry> entries;  ///< sorted by GUID
};

// --- events
struct CableUp {
  PortIndex port;
  Neighbour neighbour;
  std::uint64_t rate = 0;  ///< bit/s
  std::uint32_t cost = 0;  ///< of sending over it; 0: 10^12 / rate, at least 1
};
struct CableDown {
  PortIndex port;
  std::string reason;
};
struct MessageReceived {
  PortIndex port;
  std::vector<std::byte> message;
};
struct PrefixesChanged {  ///< what this host serves besides its own addresses, and whether it has a default
                          ///< route
  std::vector<Prefix> prefixes;
};
/// Drained: others avoid the way through this host as long as there is another; it goes on relaying what
/// still comes, and can be reached itself.
struct DrainChanged {
  bool drained = false;
};
/// What the other gateways shall know of this one: opaque bytes, at most kMaxGatewayState (messages.hpp).
/// Flooded like the rest, and of no influence on the ways. Empty: this host is no gateway.
struct GatewayStateChanged {
  std::vector<std::byte> state;
};
struct TimerExpired {};  ///< next_timer() has come
using Event = std::variant<CableUp, CableDown, MessageReceived, PrefixesChanged, DrainChanged,
                           GatewayStateChanged, TimerExpired>;

// --- actions
struct SendMessage {  ///< over the port's control queue pair: reliable and in order while the cable lives
  PortIndex port;
  std::vector<std::byte> message;  ///< at most kMaxMessage bytes
};
struct ResetCable {  ///< the neighbour is silent or speaks nonsense: drop the connection and begin anew
  PortIndex port;
  std::string reason;
};
struct LidsAgreed {  ///< write to stable storage; give each cable's subnet manager its LIDs
  LidTable table;
};
struct Publish {  ///< to the data path
  std::shared_ptr<const ForwardingState> state;
};
/// Another host's GatewayStateChanged has arrived, or its first advertisement. A host's state is told before
/// it becomes reachable.
struct GatewayHeard {
  Guid host;
  std::vector<std::byte> state;
};
struct ReachabilityChanged {  ///< over live cables; every other host begins unreachable
  Guid host;
  bool reachable = false;
};
struct Notice {  ///< for `fabricctl monitor` and the log
  enum class Level : std::uint8_t { info, warning, error } level = Level::info;
  std::string kind;  ///< stable word: "adjacency-full", "host-gone", "way-changed", ...
  std::string text;
};
using Action =
    std::variant<SendMessage, ResetCable, LidsAgreed, Publish, GatewayHeard, ReachabilityChanged, Notice>;

inline constexpr std::size_t kMaxMessage = 16384;

// --- settings
struct NodeTimers {
  using ms = std::chrono::milliseconds;
  /// Sent where nothing else was sent for so long.
  Duration keepalive = ms(200);
  /// A neighbour that says nothing for so long hangs: ResetCable. Slow on purpose: port events, failed
  /// completions and the heartbeat on the data path find dead cables; this finds dead daemons.
  Duration dead = ms(1000);
  /// A host without any agreement waits until the map was quiet for so long before it assigns the first
  /// LIDs, so that a cold start does one round...
  Duration settle = ms(50);
  /// ...and, as long as it has no neighbour at all, for so long.
  Duration alone = ms(1000);
  /// Least time between two computations of the map; the first after a pause is immediate.
  Duration hold = ms(1);
  /// How long a cable that is down stays on the map: so long the ways go on counting with it.
  Duration remember = std::chrono::minutes(10);
  /// Advertisements are sent again this often...
  Duration refresh = std::chrono::minutes(10);
  /// ...and forgotten if they were not for so long.
  Duration max_age = std::chrono::minutes(35);
  /// A cable that lived for less than `flap` and did so `flaps` times in a row is advertised again only after
  /// `damping`, doubled each time up to `damping_max`; unless its ends cannot reach each other otherwise.
  Duration flap = ms(500);
  unsigned flaps = 5;
  Duration damping = std::chrono::seconds(1);
  Duration damping_max = std::chrono::seconds(16);
  /// New ways wait for the agreement of all hosts on the map, but not longer than this.
  Duration agreement = std::chrono::seconds(5);
};

struct NodeSettings {
  Guid guid;
  std::string name;               ///< at most 63 bytes
  std::uint32_t incarnation = 0;  ///< grows with each start: seconds of the wall clock will do
  std::uint8_t priority = 0;      ///< the highest becomes the one who assigns LIDs; then the lower GUID
  HostIndex preferred = kNoHost;  ///< kNoHost: what was agreed before, else the number at the end of the name
  std::vector<Prefix> prefixes;   ///< as in PrefixesChanged
  bool multipath = true;          ///< spread lanes over both ways where their costs are equal
  std::uint8_t lanes = 16;        ///< 1..16
  NodeTimers timers;
};

// --- inspection
enum class AdjacencyState : std::uint8_t {
  down,  ///< no connection
  init,  ///< connected; waiting for the neighbour's database
  full,  ///< databases are the same; advertised to all
};
constexpr const char* to_string(AdjacencyState state) {
  constexpr const char* names[] = {"down", "init", "full"};
  return names[static_cast<std::size_t>(state)];
}

struct AdjacencyView {
  PortIndex port;
  AdjacencyState state = AdjacencyState::down;
  TimePoint since;         ///< of this state
  std::string reason;      ///< why it went down last; empty if it never did
  Neighbour neighbour;     ///< the present one, or the last
  std::uint64_t rate = 0;  ///< bit/s
  std::uint32_t cost = 0;  ///< of sending this way
  std::uint64_t messages_in = 0, messages_out = 0;
  std::uint64_t malformed = 0;  ///< messages that made no sense; each cost the connection
  std::uint64_t times_full = 0;
  bool damped = false;  ///< full, but not used for now because it keeps failing
};

struct HostView {
  Guid guid;
  std::string name;
  HostIndex index = kNoHost;
  std::uint32_t incarnation = 0;
  std::uint8_t priority = 0;
  bool self = false;
  bool reachable = false;
  bool assigner = false;  ///< the elected one, who assigns LIDs
  bool drained = false;
  bool settled = false;  ///< works with the same map as this host
  /// Taken out, it cuts others off (an articulation point), or so does one cable of it (a bridge).
  bool critical = false;
  std::uint64_t sequence = 0;  ///< of its advertisement
  Duration age{};              ///< of its advertisement
  std::vector<Prefix> prefixes;
  TimePoint way_since;  ///< since when this host's traffic there takes the ways that it takes now
};

struct CableView {
  struct End {
    Guid host;
    PortIndex port;
    std::uint32_t cost = 0;  ///< of sending from here
    bool up = false;         ///< says this end
  };
  std::array<End, 2> ends;  ///< by GUID, then port
  std::uint64_t rate = 0;   ///< bit/s
  bool up = false;          ///< both ends say so
  bool bridge = false;      ///< nothing replaces it
};

struct NodeView {
  std::uint64_t generation = 0;  ///< of the forwarding state
  TimePoint last_reroute;        ///< when the ways of some host last changed
  std::string last_reroute_reason;
  std::uint64_t map = 0;  ///< hash of map and LID table; hosts with the same value forward alike
  bool settled = false;   ///< all reachable hosts have the same
  Guid assigner;          ///< zero: none yet
  std::uint64_t advertisements = 0, floods = 0, computations = 0, disagreements = 0;
};

/// One step of a way.
struct Hop {
  Guid from, to;
  PortIndex egress, ingress;
  std::uint32_t cost = 0;
  std::uint64_t rate = 0;  ///< bit/s
  bool up = false;
};

class Node {
 public:
  /// `kept`: the table of the last LidsAgreed before the restart, if there is one.
  explicit Node(NodeSettings settings, std::optional<LidTable> kept = std::nullopt);
  ~Node();
  Node(Node&&) noexcept;
  Node& operator=(Node&&) noexcept;

  /// What follows from the event, in order. `now` never goes back.
  std::vector<Action> handle(TimePoint now, const Event& event);
  /// When TimerExpired is due; nothing: never.
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

  [[nodiscard]] const NodeSettings& settings() const;
  [[nodiscard]] NodeView view() const;
  [[nodiscard]] std::vector<HostView> hosts() const;             ///< by GUID
  [[nodiscard]] std::vector<CableView> cables() const;           ///< of the whole fabric, by first end
  [[nodiscard]] std::vector<AdjacencyView> adjacencies() const;  ///< of this host, by port
  [[nodiscard]] const LidTable& lid_table() const;
  /// What was published last. Never null.
  [[nodiscard]] const std::shared_ptr<const ForwardingState>& forwarding() const;
  /// The cables that `way` (0 or 1) takes from one host to another, computed as all hosts do; empty if there
  /// is none, or for a host to itself.
  [[nodiscard]] std::vector<Hop> path(Guid from, Guid to, unsigned way) const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace fabric::routing
