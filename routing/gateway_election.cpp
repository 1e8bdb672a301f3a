// The state machine of RFC 9568 (version 3) and RFC 3768 (version 2), and the claim that decides who may
// enter its Master state while the ring is whole.
//
// handle() is: one event, then evaluate(), which compares what is with what ought to be, then flood() if what
// the other gateway should know has changed. on() functions only note facts and do what the RFC says at once.
//
// Departures from RFC 9568:
//   6.1     Skew_Time is not rounded to centiseconds: at an interval of 10 ms it would be 0 for everybody,
//   and
//           backups would go at the same time.
//   6.4.1   The owner waits for the other gateway's agreement too, where the ring reaches it: a millisecond.
//   6.4.2   A backup becomes master earlier than Master_Down_Timer where the ring says that the master is
//   gone,
//           and later, or not at all, where the ring says that it is there. With a worse master it waits for
//           preempt_delay. A worse master that holds the claim is asked to hand over, not pushed.
//   6.4.3   The answer to a worse master's advertisement is sent at most once in 10 ms.
//
// Silence is counted from the last advertisement in quarters of the master's interval: 5 raise suspicion
// (probes), 6 are enough when the ring says that the master is gone.
#include "routing/gateway_election.hpp"

#include <algorithm>
#include <utility>

#include "routing/codec.hpp"

namespace fabric::routing {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr unsigned kSuspicion = 5, kSilence = 6;     ///< quarters of an interval
constexpr Duration kAnnounceAgain = seconds(5);      ///< as keepalived
constexpr Duration kLeastAnswer = milliseconds(10);  ///< between answers to worse masters
constexpr Duration kProbe = milliseconds(8);         ///< until the first answer...
constexpr unsigned kDeaf = 3;                        ///< ...or so many without one
constexpr Duration kProbeAgain = milliseconds(100);  ///< while something is wrong
constexpr Duration kProbeWatch = seconds(1);         ///< of a master, so that it notices one-way LANs
constexpr Duration kFaultAgain = seconds(10);  ///< a fault is told again after it was not there for so long
constexpr std::uint8_t kEncoding = 1;

constexpr std::size_t kFlagHears = 0x80, kFlagWants = 0x40, kFlagServes = 0x20;

}  // namespace

// --- encoding

std::vector<std::byte> encode(const GatewayPeerState& state) {
  std::vector<std::byte> bytes;
  bytes.reserve(40);
  Writer out(bytes);
  out.number(kEncoding);
  out.number(static_cast<std::uint8_t>(state.state));
  out.number(state.priority);
  out.number(static_cast<std::uint8_t>(static_cast<std::size_t>(state.lan) |
                                       (state.hears_master ? kFlagHears : 0) |
                                       (state.wants ? kFlagWants : 0) | (state.serves ? kFlagServes : 0)));
  out.bytes(std::as_bytes(std::span(state.primary)));
  out.number(state.claim.term);
  out.number(state.claim.priority);
  out.number(state.claim.holder.value());
  return bytes;
}

std::optional<GatewayPeerState> decode_peer_state(std::span<const std::byte> bytes) {
  Reader in(bytes);
  GatewayPeerState state;
  in.require(in.number<std::uint8_t>() == kEncoding);
  const auto role = in.number<std::uint8_t>();
  in.require(role <= static_cast<std::uint8_t>(GatewayState::master));
  state.state = static_cast<GatewayState>(role);
  state.priority = in.number<std::uint8_t>();
  const auto flags = in.number<std::uint8_t>();
  const std::uint8_t health = flags & 0x1F;
  in.require(health <= static_cast<std::uint8_t>(LanHealth::deaf));
  state.lan = static_cast<LanHealth>(health);
  state.hears_master = (flags & kFlagHears) != 0;
  state.wants = (flags & kFlagWants) != 0;
  state.serves = (flags & kFlagServes) != 0;
  for (std::uint8_t& byte : state.primary) byte = in.number<std::uint8_t>();
  state.claim.term = in.number<std::uint32_t>();
  state.claim.priority = in.number<std::uint8_t>();
  state.claim.holder = Guid(in.number<std::uint64_t>());
  if (!in.done()) return std::nullopt;
  return state;
}

// --- in and out

GatewayElection::GatewayElection(GatewaySettings settings) : settings_(std::move(settings)) {
  view_.priority = settings_.priority;
  view_.interval = settings_.interval;
  view_.reason = "not started";
}

std::vector<GatewayAction> GatewayElection::handle(TimePoint now, const GatewayEvent& event) {
  now_ = now;
  actions_.clear();
  std::visit([this](const auto& e) { on(e); }, event);
  evaluate();
  flood();
  return std::move(actions_);
}

std::optional<TimePoint> GatewayElection::next_timer() const {
  // What was due at now_ has been looked at; what it led to, if anything, has a time of its own.
  std::optional<TimePoint> next;
  const auto consider = [&](std::optional<TimePoint> at) {
    if (at && *at > now_ && (!next || *at < *next)) next = at;
  };
  consider(advertise_at_);
  consider(announce_at_);
  consider(announce_again_at_);
  consider(probe_at_);
  if (view_.state == GatewayState::backup) {
    consider(master_down_at_);
    consider(silent_at(kSuspicion));
    consider(silent_at(kSilence));
    if (worse_since_) consider(*worse_since_ + settings_.preempt_delay);
  }
  return next;
}

GatewayView GatewayElection::view() const {
  GatewayView view = view_;
  view.effective_priority = priority();
  view.skew = skew();
  view.master_down = master_down();
  view.holder = granted_;
  for (const auto& [host, peer] : peers_) {
    if (peer.state) view.peers.push_back({host, peer.reachable, *peer.state});
  }
  return view;
}

void GatewayElection::flood() {
  GatewayPeerState state;
  state.state = view_.state;
  state.priority = priority();
  state.primary = view_.primary;
  state.lan = view_.lan;
  state.hears_master = view_.state == GatewayState::backup && view_.heard && !silent(kSuspicion);
  state.serves = can_serve();
  state.claim = view_.claim;
  const Peer* other = holder();
  state.wants = view_.state == GatewayState::backup && can_serve() && other != nullptr &&
                (preempts() || (other->state->state != GatewayState::master && reason_to_serve()));
  if (flooded_ == state) return;
  flooded_ = state;
  act(FloodState{state});
}

// --- VRRP

std::uint8_t GatewayElection::priority() const {
  if (settings_.priority == kOwnerPriority) return kOwnerPriority;  // RFC 9568, 6.1: the owner's is fixed
  int priority = settings_.priority;
  if (settings_.track_ring && !tracking_.ring) priority -= kTrackingPenalty;
  if (settings_.track_default_route && !tracking_.default_route) priority -= kTrackingPenalty;
  return static_cast<std::uint8_t>(std::max(priority, 1));
}

Duration GatewayElection::skew() const {
  // RFC 9568, 6.1; RFC 3768, 6.1 has a second where version 3 has the interval.
  const Duration unit = settings_.version == 2 ? Duration(seconds(1)) : Duration(view_.interval);
  return (256 - priority()) * unit / 256;
}

Duration GatewayElection::master_down() const {
  return 3 * Duration(view_.interval) + skew();
}

TimePoint GatewayElection::silent_at(unsigned quarters) const {
  return quiet_since_ + quarters * Duration(view_.interval) / 4;
}

void GatewayElection::change(GatewayState state, std::string reason) {
  const GatewayState before = std::exchange(view_.state, state);
  view_.since = now_;
  view_.reason = std::move(reason);
  worse_since_.reset();
  advertise_at_.reset();
  master_down_at_.reset();
  announce_at_.reset();
  announce_again_at_.reset();
  excused_ = false;
  switch (state) {
    case GatewayState::initialize:
      break;
    case GatewayState::backup:
      quiet_since_ = now_;
      master_down_at_ = now_ + master_down();
      break;
    case GatewayState::master:
      ++view_.times_master;
      view_.interval = settings_.interval;
      given_ = stood_down_ = false;
      act(BecomeMaster{});
      advertise(priority());
      act(Announce{});
      announce_again_at_ = now_ + kAnnounceAgain;
      break;
  }
  if (before == GatewayState::master && state != GatewayState::master) act(BecomeBackup{});
  act(GatewayNotice{false, std::string("gateway-") + to_string(state), view_.reason});
}

void GatewayElection::startup() {
  view_.interval = settings_.interval;
  view_.heard.reset();
  // RFC 9568, 6.4.1; the owner goes on in evaluate(), as it needs the claim.
  change(GatewayState::backup, "started; listening whether there is a master");
}

void GatewayElection::advertise(std::uint8_t priority) {
  ++view_.advertisements_sent;
  if (priority == kLeavingPriority) ++view_.zero_sent;
  advertised_ = now_;
  advertise_at_ = now_ + settings_.interval;
  act(SendAdvertisement{priority, settings_.interval});
}

void GatewayElection::on(const GatewayStart&) {
  running_ = true;
  if (can_serve()) startup();
}

void GatewayElection::on(const GatewayShutdown&) {
  if (view_.state == GatewayState::master) advertise(kLeavingPriority);
  running_ = false;
  if (view_.state != GatewayState::initialize) change(GatewayState::initialize, "shut down");
}

void GatewayElection::on(const LanChanged& lan) {
  const bool could = can_serve();
  view_.lan_up = lan.up;
  view_.primary = lan.primary;
  if (could == can_serve()) return;
  view_.lan = LanHealth::unknown;
  if (can_serve()) {
    startup();
  } else if (view_.state != GatewayState::initialize) {
    change(GatewayState::initialize,
           lan.up ? "the LAN interface has lost its address" : "the LAN interface is down");
  }
}

void GatewayElection::on(const TrackingChanged& tracking) {
  tracking_ = tracking;
  if (view_.state == GatewayState::backup) master_down_at_ = quiet_since_ + master_down();
}

void GatewayElection::on(const AdvertisementReceived& advertisement) {
  ++view_.advertisements_received;
  if (view_.state == GatewayState::initialize) return;
  if (advertisement.version != settings_.version) {
    ++view_.version_errors;
    return;
  }
  if (settings_.priority == kOwnerPriority) {  // RFC 9568, 7.1 with erratum 8298: told, not discarded
    if (view_.owner_conflicts++ == 0) {
      act(GatewayNotice{true, "gateway-owner",
                        "another router advertises addresses that are this host's own"});
    }
  }
  if (settings_.version == 2 && advertisement.interval != settings_.interval) {  // RFC 3768, 7.1
    ++view_.interval_errors;
    return;
  }
  if (advertisement.addresses != settings_.addresses) {
    if (view_.address_errors++ == 0) {
      act(GatewayNotice{true, "gateway-addresses",
                        "another router advertises other addresses with this virtual router ID"});
    }
  }
  if (advertisement.priority == kLeavingPriority) ++view_.zero_received;
  if (view_.state == GatewayState::master) {
    heard_as_master(advertisement);
  } else {
    heard_as_backup(advertisement);
  }
}

void GatewayElection::hear(const AdvertisementReceived& advertisement) {
  if (settings_.version == 3) view_.interval = advertisement.interval;
  view_.heard = quiet_since_ = now_;
  view_.heard_from = advertisement.source;
  view_.heard_priority = advertisement.priority;
  excused_ = false;
}

void GatewayElection::heard_as_backup(const AdvertisementReceived& advertisement) {
  if (advertisement.priority == kLeavingPriority) {
    master_down_at_ = now_ + skew();
    return;
  }
  const Peer* other = holder();
  const bool rightful = other != nullptr && other->state->primary == advertisement.source;
  const bool worse = advertisement.priority < priority();
  if (worse && settings_.preempt && !stood_down_) {
    if (!worse_since_) worse_since_ = now_;
  } else {
    worse_since_.reset();
  }
  // A worse master is not listened to when the time has come to preempt it; who has the claim is asked.
  if (worse && worse_since_ && now_ >= *worse_since_ + settings_.preempt_delay && !rightful) return;
  hear(advertisement);
  master_down_at_ = now_ + master_down();
}

void GatewayElection::heard_as_master(const AdvertisementReceived& advertisement) {
  if (advertisement.priority == kLeavingPriority) {
    advertise(priority());
    return;
  }
  const auto theirs = std::tie(advertisement.priority, advertisement.source);
  const std::uint8_t own = priority();
  const bool stronger = theirs > std::tie(own, view_.primary);
  if (!stronger) {
    if (now_ >= advertised_ + kLeastAnswer) advertise(own);
    announce_soon(settings_.interval);
    return;
  }
  // To the other gateway the claim goes along, so that the ring, when it is whole again, need not undo this.
  for (const auto& [host, peer] : peers_) {
    if (peer.state && peer.state->primary == advertisement.source) {
      view_.claim = {view_.claim.term + 1, advertisement.priority, host};
      granted_ = given_ = false;
    }
  }
  change(GatewayState::backup, "heard a better master on the LAN");
  hear(advertisement);
  master_down_at_ = now_ + master_down();
}

void GatewayElection::announce_soon(Duration delay) {
  if (view_.state != GatewayState::master) return;
  if (!announce_at_) announce_at_ = now_ + delay;
  announce_again_at_ = now_ + delay + kAnnounceAgain;
}

void GatewayElection::on(const GatewayTimerExpired&) {
  if (view_.state == GatewayState::master) {
    if (advertise_at_ && now_ >= *advertise_at_) advertise(priority());
    for (auto* at : {&announce_at_, &announce_again_at_}) {
      if (*at && now_ >= **at) {
        at->reset();
        act(Announce{});
      }
    }
  } else if (view_.state == GatewayState::backup && master_down_at_ && now_ >= *master_down_at_) {
    // Late by half an interval: this host was not scheduled, and may not have heard what was said. Once.
    if (now_ > *master_down_at_ + Duration(view_.interval) / 2 && !excused_) {
      excused_ = true;
      master_down_at_ = now_ + view_.interval;
      quiet_since_ = now_ - Duration(view_.interval);
    }
  }
  if (probe_at_ && now_ >= *probe_at_) probe();
}

// --- the claim

const GatewayElection::Peer* GatewayElection::holder() const {
  const auto found = peers_.find(view_.claim.holder);
  return found != peers_.end() && found->second.counts() ? &found->second : nullptr;
}

const GatewayElection::Peer* GatewayElection::peer_at(const IpAddress& address) const {
  const auto found = std::find_if(peers_.begin(), peers_.end(), [&](const auto& entry) {
    return entry.second.state && entry.second.state->primary == address;
  });
  return found == peers_.end() ? nullptr : &found->second;
}

bool GatewayElection::better(const GatewayPeerState& peer) const {
  return std::pair(peer.priority, peer.primary) > std::pair(priority(), view_.primary);
}

void GatewayElection::adopt(const GatewayClaim& claim) {
  if (view_.state == GatewayState::master && claim.holder != settings_.self) {
    change(GatewayState::backup, "the other gateway has the newer claim");
  }
  view_.claim = claim;
  granted_ = false;
  given_ = claim.holder == settings_.self;
}

void GatewayElection::update_grant() {
  if (view_.claim.holder != settings_.self || view_.claim.term == 0) {
    granted_ = false;
  } else if (!granted_) {
    granted_ = std::all_of(peers_.begin(), peers_.end(), [&](const auto& entry) {
      return !entry.second.counts() || entry.second.state->claim == view_.claim;
    });
  }
}

void GatewayElection::pass_to(Guid host, const std::string& reason) {
  if (view_.state == GatewayState::master) change(GatewayState::backup, reason);
  view_.claim = {view_.claim.term + 1, peers_[host].state->priority, host};
  granted_ = given_ = false;
}

void GatewayElection::consider_passing() {
  if (view_.claim.holder != settings_.self) return;
  for (const auto& [host, peer] : peers_) {
    if (!peer.counts() || !peer.state->serves) continue;
    const bool penalty = settings_.priority != kOwnerPriority && priority() < settings_.priority;
    std::string reason;
    if (!can_serve()) {
      reason = view_.reason;
    } else if (view_.lan == LanHealth::deaf && peer.state->lan == LanHealth::answered) {
      reason = "LAN fault: the LAN does not answer here, and answers the other gateway";
    } else if (better(*peer.state) && peer.state->wants) {
      reason = "the other gateway is better and wants to serve";
    } else if (better(*peer.state) && penalty && peer.state->lan != LanHealth::deaf) {
      reason = tracking_.ring ? "no default route that works" : "no other host can be reached over the ring";
    } else {
      continue;
    }
    return pass_to(host, reason);
  }
}

void GatewayElection::on(const PeerStateReceived& received) {
  Peer& peer = peers_[received.host];
  const std::optional<GatewayPeerState> before = std::exchange(peer.state, received.state);
  if (!received.state) return;
  if (received.state->claim > view_.claim) adopt(received.state->claim);
  if (before) {
    const bool was_master = before->state == GatewayState::master;
    if (was_master && received.state->state != GatewayState::master) announce_soon(Duration(0));
    if (!before->hears_master && received.state->hears_master) announce_soon(Duration(0));
  }
}

void GatewayElection::on(const PeerReachable& peer) {
  peers_[peer.host].reachable = peer.reachable;
}

void GatewayElection::on(const HandoverRequested&) {
  if (!granted_) return;
  const Guid self = settings_.self;
  for (const auto& [host, peer] : peers_) {
    if (host == self || !peer.counts() || !peer.state->serves) continue;
    pass_to(host, "handed over on request");
    stood_down_ = true;
    return;
  }
}

bool GatewayElection::preempts() const {
  const Peer* other = holder();
  return other != nullptr && other->state->state == GatewayState::master && settings_.preempt &&
         !stood_down_ && !better(*other->state) && view_.lan != LanHealth::deaf && !silent(kSuspicion) &&
         view_.heard_from == other->state->primary && worse_since_ &&
         now_ >= *worse_since_ + settings_.preempt_delay;
}

/// Why a backup should be master now, if the claim allows it.
std::optional<std::string> GatewayElection::reason_to_serve() const {
  if (settings_.priority == kOwnerPriority) return "the addresses are this host's own";
  const bool silence = silent(kSilence);
  const bool from_peer = view_.heard && peer_at(view_.heard_from) != nullptr;
  if (given_ && (from_peer || silence || !view_.heard)) return "the other gateway has handed over";
  if (master_down_at_ && now_ >= *master_down_at_) return "the LAN is silent: no master for three intervals";
  if (silence && from_peer && peers_.contains(view_.claim.holder) && holder() == nullptr &&
      peer_at(view_.heard_from) == &peers_.at(view_.claim.holder)) {
    return "the LAN is silent, and the ring says that the master is gone";
  }
  return std::nullopt;
}

// --- the LAN's health

/// Something on the LAN is not as the ring says.
bool GatewayElection::suspicious() const {
  if (!can_serve()) return false;
  const Peer* other = holder();
  if (view_.state == GatewayState::backup) {
    return other != nullptr && other->state->state == GatewayState::master &&
           (silent(kSuspicion) || other->state->lan == LanHealth::deaf);
  }
  return std::any_of(peers_.begin(), peers_.end(), [](const auto& entry) {
    const Peer& peer = entry.second;
    return peer.counts() && peer.state->serves && peer.state->state == GatewayState::backup &&
           !peer.state->hears_master;
  });
}

/// There is another gateway that could serve instead.
bool GatewayElection::watched() const {
  return can_serve() &&
         std::any_of(peers_.begin(), peers_.end(), [](const auto& entry) { return entry.second.counts(); });
}

void GatewayElection::on(const LanProbeAnswered&) {
  unanswered_ = 0;
  const LanHealth before = std::exchange(view_.lan, LanHealth::answered);
  if (before == LanHealth::deaf) announce_soon(Duration(0));
}

void GatewayElection::probe() {
  const bool late = now_ > *probe_at_ + kProbe;  // this host has slept: what was asked may yet be answered
  if (late) unanswered_ = std::min(unanswered_, kDeaf - 1);
  if (unanswered_ >= kDeaf) view_.lan = LanHealth::deaf;
  ++unanswered_;
  ProbeLan action;
  for (const auto& [host, peer] : peers_) {
    if (peer.state && peer.state->primary != IpAddress{}) action.peers.push_back(peer.state->primary);
  }
  act(std::move(action));
  const bool trouble = suspected_ || view_.lan == LanHealth::deaf;
  const bool hurry = unanswered_ <= kDeaf && (view_.lan != LanHealth::deaf);
  probe_at_ = now_ + (hurry ? kProbe : trouble ? kProbeAgain : kProbeWatch);
}

void GatewayElection::describe_fault() {
  const Peer* other = holder();
  std::string fault;
  if (view_.state == GatewayState::backup && other != nullptr &&
      other->state->state == GatewayState::master && view_.lan == LanHealth::deaf) {
    fault = "LAN fault: the LAN does not answer here; the ring says that the other gateway serves";
  } else if (view_.state == GatewayState::backup && other != nullptr &&
             other->state->state == GatewayState::master && master_down_at_ && now_ >= *master_down_at_) {
    fault = "LAN fault: the master is not heard on the LAN; the ring says that it serves";
  } else if (view_.state == GatewayState::master && view_.lan == LanHealth::deaf) {
    fault = "LAN fault: the LAN does not answer, neither here nor, it seems, elsewhere";
  } else if (view_.state == GatewayState::master && suspected_ && unanswered_ == 0) {
    fault = "LAN fault: the other gateway does not hear this one on the LAN";
  } else if (view_.state == GatewayState::master && watched() == false && !peers_.empty()) {
    fault = "the other gateway cannot be reached over the ring";
  }
  view_.fault = std::move(fault);
  if (view_.fault.empty()) return;
  // Some come and go with each probe.
  if (view_.fault != noticed_fault_ || now_ - fault_seen_ > kFaultAgain)
    act(GatewayNotice{true, "gateway-fault", view_.fault});
  noticed_fault_ = view_.fault;
  fault_seen_ = now_;
}

// --- what ought to be

void GatewayElection::evaluate() {
  update_grant();
  consider_passing();
  if (view_.state == GatewayState::backup) {
    if (const auto reason = reason_to_serve()) {
      // Nobody to ask holds the claim: it is free. Passing it on is the holder's, where there is one.
      if (view_.claim.holder != settings_.self && holder() == nullptr) {
        view_.claim = {view_.claim.term + 1, priority(), settings_.self};
        granted_ = false;
        update_grant();
      }
      if (granted_) change(GatewayState::master, *reason);
    }
  }
  const bool suspected = suspicious();
  if (suspected && !suspected_) {
    if (view_.lan == LanHealth::answered) view_.lan = LanHealth::unknown;
    unanswered_ = 0;
    probe_at_ = now_;
  }
  suspected_ = suspected;
  if (!watched()) {
    probe_at_.reset();
    view_.lan = LanHealth::unknown;
  } else if (!probe_at_) {
    probe_at_ = now_ + kProbeWatch;
  }
  if (probe_at_ && now_ >= *probe_at_) probe();
  describe_fault();
}

}  // namespace fabric::routing
