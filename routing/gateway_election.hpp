// Which host of a gateway pair serves the virtual addresses of one family (IPv4 or IPv6), as a value: events
// in, actions out, no I/O, no clock, no thread. VRRP on the LAN (RFC 9568, RFC 3768), and a second channel
// over the ring. docs/gateway.md tells how the two work together; gateway_election.cpp where this departs
// from the RFC.
//
// Use: construct; handle(now, Start{}); from then on one handle() per event, and TimerExpired whenever
// next_timer() has come. What the sockets hold must be read before TimerExpired is given: a daemon that was
// not scheduled for a while must not take its own pause for the master's silence.
#pragma once

#include <array>
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "words/words.hpp"

namespace fabric::routing {

/// As in Prefix: IPv4 is ::ffff:a.b.c.d. Compared byte by byte, so unsigned and in network order.
using IpAddress = std::array<std::uint8_t, 16>;

/// VRRP's unit of time in version 3.
using Centiseconds = std::chrono::duration<std::int64_t, std::centi>;

inline constexpr std::uint8_t kOwnerPriority = 255;    ///< has the virtual addresses as its own
inline constexpr std::uint8_t kLeavingPriority = 0;    ///< a master that stops; never configured
inline constexpr std::uint8_t kTrackingPenalty = 100;  ///< taken off the priority for each thing that fails

/// Names of RFC 9568, section 6.3.
enum class GatewayState : std::uint8_t { initialize, backup, master };
constexpr const char* to_string(GatewayState state) {
  constexpr const char* names[] = {"initialize", "backup", "master"};
  return names[static_cast<std::size_t>(state)];
}

/// What the LAN has answered to the last probes (ARP requests, neighbour solicitations).
enum class LanHealth : std::uint8_t {
  unknown,   ///< not asked lately
  answered,  ///< frames get out and answers come in
  deaf,      ///< several probes in a row without any answer
};
constexpr const char* to_string(LanHealth health) {
  constexpr const char* names[] = {"unknown", "answered", "deaf"};
  return names[static_cast<std::size_t>(health)];
}

/// Who may serve while the ring is whole: the newest claim that is known. Ordered; the greater one counts.
struct GatewayClaim {
  std::uint32_t term = 0;  ///< 0: nobody has claimed yet
  std::uint8_t priority = 0;
  Guid holder;
  auto operator<=>(const GatewayClaim&) const = default;
};

/// What a gateway tells the other over the ring; each replaces the one before.
struct GatewayPeerState {
  GatewayState state = GatewayState::initialize;
  std::uint8_t priority = 0;  ///< the effective one
  IpAddress primary{};        ///< its source address on the LAN; zero: none
  LanHealth lan = LanHealth::unknown;
  bool hears_master = false;  ///< has heard a master's advertisement on the LAN lately
  bool wants = false;         ///< asks the holder to hand over: it would preempt, or was told to
  bool serves = false;        ///< could: running, with its LAN interface up
  GatewayClaim claim;         ///< the newest that it knows, which it thereby agrees to
  bool operator==(const GatewayPeerState&) const = default;
};
/// 34 bytes, the first of which is a version.
std::vector<std::byte> encode(const GatewayPeerState& state);
/// Nothing if it makes no sense.
std::optional<GatewayPeerState> decode_peer_state(std::span<const std::byte> bytes);

struct GatewaySettings {
  Guid self;
  std::uint8_t vrid = 1;        ///< 1..255
  std::uint8_t priority = 100;  ///< 1..255; 255: owner
  std::uint8_t version = 3;     ///< 2 or 3; what is sent, and what is understood
  /// Between advertisements; version 3: 1..4095, version 2: whole seconds, 1..255.
  Centiseconds interval{5};
  bool preempt = true;
  Duration preempt_delay = std::chrono::seconds(3);  ///< a better backup waits so long first
  /// What of Tracking counts; 0: nothing.
  bool track_ring = true, track_default_route = true;
  std::vector<IpAddress> addresses;  ///< virtual ones, all of one family; at least one
};

// --- events
struct GatewayStart {};
struct GatewayShutdown {};
/// Correct in itself (codec), for this VRID, with TTL or hop limit 255, and not from this host.
struct AdvertisementReceived {
  IpAddress source;
  std::uint8_t version = 3;
  std::uint8_t priority = 0;
  Centiseconds interval{0};
  std::vector<IpAddress> addresses;
};
/// The LAN interface: running (administratively up, with carrier), and its source address there.
struct LanChanged {
  bool up = false;
  IpAddress primary{};  ///< zero: none, so that it cannot serve yet
};
struct LanProbeAnswered {};
struct TrackingChanged {
  bool ring = true;           ///< some other host can be reached over the ring
  bool default_route = true;  ///< this host has one that works
};
/// What another gateway has flooded over the ring; nothing: it takes no part (any more).
struct PeerStateReceived {
  Guid host;
  std::optional<GatewayPeerState> state;
};
/// The ring as witness: whether there is a way to the other gateway's host. Give a host's state before this.
struct PeerReachable {
  Guid host;
  bool reachable = false;
};
struct HandoverRequested {};  ///< `fabricctl gateway handover`: the other one shall serve
struct GatewayTimerExpired {};
using GatewayEvent =
    std::variant<GatewayStart, GatewayShutdown, AdvertisementReceived, LanChanged, LanProbeAnswered,
                 TrackingChanged, PeerStateReceived, PeerReachable, HandoverRequested, GatewayTimerExpired>;

// --- actions, to be carried out in their order
struct SendAdvertisement {
  std::uint8_t priority = 0;
  Centiseconds interval{0};
};
struct BecomeMaster {};  ///< install the addresses
struct BecomeBackup {};  ///< remove the addresses; go on passing on for a moment what still comes
/// Gratuitous ARP or unsolicited neighbour advertisement for every address.
struct Announce {};
/// Ask the LAN for a sign of life: ARP or neighbour solicitation to the upstream routers and to `peers`.
struct ProbeLan {
  std::vector<IpAddress> peers;
};
/// To all over the ring, replacing the one before.
struct FloodState {
  GatewayPeerState state;
};
struct GatewayNotice {
  bool warning = false;
  std::string kind;  ///< stable word: "gateway-master", "gateway-backup", "gateway-lan-fault", ...
  std::string text;
};
using GatewayAction = std::variant<SendAdvertisement, BecomeMaster, BecomeBackup, Announce, ProbeLan,
                                   FloodState, GatewayNotice>;

// --- inspection
struct GatewayView {
  GatewayState state = GatewayState::initialize;
  TimePoint since;     ///< of this state
  std::string reason;  ///< of this state, a sentence
  std::uint8_t priority = 0, effective_priority = 0;
  Centiseconds interval{0};  ///< in use: the master's
  Duration skew{0}, master_down{0};
  bool lan_up = false;
  IpAddress primary{};
  LanHealth lan = LanHealth::unknown;
  std::optional<TimePoint> heard;  ///< the last advertisement
  IpAddress heard_from{};
  std::uint8_t heard_priority = 0;
  /// Why the LAN and the ring do not say the same; empty where they do.
  std::string fault;
  GatewayClaim claim;
  bool holder = false;  ///< this host has the claim, and all that can be asked agree
  struct Peer {
    Guid host;
    bool reachable = false;
    GatewayPeerState state;
  };
  std::vector<Peer> peers;
  std::uint64_t times_master = 0, advertisements_sent = 0, advertisements_received = 0;
  std::uint64_t zero_sent = 0, zero_received = 0;  ///< with priority 0
  std::uint64_t interval_errors = 0, address_errors = 0, version_errors = 0, owner_conflicts = 0;
};

class GatewayElection {
 public:
  explicit GatewayElection(GatewaySettings settings);

  /// What follows from the event, in order. `now` never goes back.
  std::vector<GatewayAction> handle(TimePoint now, const GatewayEvent& event);
  /// When GatewayTimerExpired is due; nothing: never.
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

  [[nodiscard]] const GatewaySettings& settings() const { return settings_; }
  [[nodiscard]] GatewayState state() const { return view_.state; }
  [[nodiscard]] GatewayView view() const;

 private:
  struct Peer {
    bool reachable = false;
    std::optional<GatewayPeerState> state;
    [[nodiscard]] bool counts() const { return reachable && state.has_value(); }
  };

  // Events
  void on(const GatewayStart&);
  void on(const GatewayShutdown&);
  void on(const AdvertisementReceived& advertisement);
  void on(const LanChanged& lan);
  void on(const LanProbeAnswered&);
  void on(const TrackingChanged& tracking);
  void on(const PeerStateReceived& received);
  void on(const PeerReachable& peer);
  void on(const HandoverRequested&);
  void on(const GatewayTimerExpired&);

  // VRRP
  void startup();
  /// The one place where the state changes.
  void change(GatewayState state, std::string reason);
  void advertise(std::uint8_t priority);
  void hear(const AdvertisementReceived& advertisement);
  void heard_as_backup(const AdvertisementReceived& advertisement);
  void heard_as_master(const AdvertisementReceived& advertisement);
  [[nodiscard]] std::uint8_t priority() const;  ///< the effective one
  [[nodiscard]] Duration skew() const;
  [[nodiscard]] Duration master_down() const;
  /// The LAN has been silent for so many quarters of an interval.
  [[nodiscard]] TimePoint silent_at(unsigned quarters) const;
  [[nodiscard]] bool silent(unsigned quarters) const { return now_ >= silent_at(quarters); }

  // The claim
  void adopt(const GatewayClaim& claim);
  void update_grant();
  void pass_to(Guid host, const std::string& reason);
  void consider_passing();
  [[nodiscard]] const Peer* holder() const;  ///< the other one that holds the claim and can be asked; or null
  [[nodiscard]] const Peer* peer_at(const IpAddress& address) const;
  [[nodiscard]] bool better(const GatewayPeerState& peer) const;
  [[nodiscard]] bool can_serve() const { return running_ && view_.lan_up && view_.primary != IpAddress{}; }
  [[nodiscard]] bool preempts() const;
  [[nodiscard]] std::optional<std::string> reason_to_serve() const;

  // The LAN's health
  [[nodiscard]] bool suspicious() const;
  [[nodiscard]] bool watched() const;
  void probe();
  void describe_fault();

  void evaluate();
  void announce_soon(Duration delay);
  void flood();
  template <class T>
  void act(T action) {
    actions_.emplace_back(std::move(action));
  }

  GatewaySettings settings_;
  GatewayView view_;
  TimePoint now_;
  std::vector<GatewayAction> actions_;  ///< of the event at hand
  bool running_ = false;
  TrackingChanged tracking_;
  std::map<Guid, Peer> peers_;

  std::optional<TimePoint> advertise_at_;    ///< Adver_Timer
  std::optional<TimePoint> master_down_at_;  ///< Master_Down_Timer
  TimePoint quiet_since_;                    ///< the last advertisement, or the start
  bool excused_ = false;                     ///< this silence was once taken for a pause of this host
  std::optional<TimePoint> worse_since_;     ///< a worse master is heard
  std::optional<TimePoint> announce_at_, announce_again_at_;
  TimePoint advertised_;

  bool granted_ = false;     ///< the claim is this host's, and all that can be asked have agreed
  bool given_ = false;       ///< the claim was passed to this host, which has not served since
  bool stood_down_ = false;  ///< somebody wanted the other to serve
  std::optional<GatewayPeerState> flooded_;

  std::optional<TimePoint> probe_at_;
  unsigned unanswered_ = 0;
  bool suspected_ = false;
  std::string noticed_fault_;  ///< the last one that was told
  TimePoint fault_seen_;
};

}  // namespace fabric::routing
