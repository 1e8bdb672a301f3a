// The greeting on an Ethernet cable.
//
// Each end announces itself to the link-local group: who it is, where it listens, what it can do. Who hears
// exactly one other, and has nothing against it, has found its neighbour. Then the one with the lower host
// GUID requests two connections, for the data and for the control queue pair; the other accepts once it has
// both requests of one attempt. So there is never a crossing pair of requests to resolve.
//
// What is refused, and left alone until it changes: more than one announcer (there is a switch, and this is
// no cable), the own host (a cable from port to port), another host with the own GUID, another version of the
// protocol between neighbours or of these messages. Both ends come to the same conclusion by themselves;
// where one does sooner, it rejects the other's requests with its reason.
//
// Who was connected and is lost (Lost) must be heard again before anything else is tried: what the cable
// carried before says nothing about now. The announcements begin anew at their fastest, so that this costs a
// few milliseconds where the neighbour is there.
//
//   unusable ──PortUsable──▶ looking ──one neighbour, lower GUID here──▶ connecting ──Connected──▶ connected
//      ▲                     ▲  └─────first request of its pair───────▶ accepting ──Connected──▶     │
//      └──PortUnusable─── any  └──────── Failed, Lost, deadline, restart of the neighbour ───────────┘
//
// How soon a dead cable shows is decided by the adapters' acknowledgement timeout. There is no right one for
// all: an adapter answers in microseconds, a loaded machine with a software adapter now and then in a second.
// So it begins short, and every false alarm doubles it: a neighbour that was given up for dead and announces
// itself again within seconds, the link never having been down. Both ends use the longer of their two.
//
// Sessions are numbered: what belongs to an earlier one is ignored when it arrives late.
#include "fabricd/ethernet/greeting.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace fabric::daemon {

namespace {

/// As many announcers are remembered. The second is one too many already; the bound is against floods.
constexpr std::size_t kMostAnnouncers = 16;

bool same_end(const Announcement& a, const Announcement& b) {
  return a.identity.host == b.identity.host && a.identity.port == b.identity.port;
}

}  // namespace

Greeting::Greeting(verbs::Identity self, std::uint8_t ack_timeout, GreetingTimers timers)
    : self_(std::move(self)), timers_(timers), first_ack_timeout_(ack_timeout), ack_timeout_(ack_timeout) {}

std::vector<Greeting::Action> Greeting::handle(TimePoint now, const Event& event) {
  now_ = now;
  std::visit([this](const auto& e) { on(e); }, event);
  if (state_ != State::unusable && state_ != State::stopped) consider();
  return std::exchange(actions_, {});
}

std::optional<TimePoint> Greeting::next_timer() const {
  if (state_ == State::unusable || state_ == State::stopped) return std::nullopt;
  TimePoint next = announce_at_;
  if (state_ == State::connecting || state_ == State::accepting) next = std::min(next, deadline_);
  if (state_ == State::looking && retry_at_ > now_) next = std::min(next, retry_at_);
  for (const Announcer& announcer : announcers_) {
    if (const auto at = forgotten_at(announcer)) next = std::min(next, *at);
  }
  return next;
}

// --- The port

void Greeting::on(const PortUsable& event) {
  if (state_ == State::stopped) return;
  const bool changed = event.service != port_.service || event.path_mtu != port_.path_mtu;
  port_ = event;
  if (state_ == State::unusable) {
    last_failure_.clear();
    begin_looking();
  } else if (changed) {
    announce_at_ = now_;
    check_mtu(peer_mtu_);
  }
}

void Greeting::on(const PortUnusable& event) {
  if (state_ == State::stopped) return;
  give_up(event.detector, event.reason);
  announcers_.clear();
  suspect_.reset();
  trouble_ = event;
  enter(State::unusable);
}

void Greeting::on(const Stopped&) {
  if (state_ == State::stopped) return;
  if (state_ != State::unusable) announce(true);
  give_up("local", "fabricd stops");
  announcers_.clear();
  enter(State::stopped);
}

// --- Announcements

void Greeting::on(const Heard& event) {
  if (state_ == State::unusable || state_ == State::stopped) return;
  ++counters_.announcements_received;
  const Announcement& heard = event.announcement;
  const bool foreign = heard.format != kWireFormat;
  const auto known = std::find_if(announcers_.begin(), announcers_.end(), [&](const Announcer& a) {
    return a.source == event.source ||
           (!foreign && a.announcement.format == kWireFormat && same_end(a.announcement, heard));
  });
  const bool was_known = known != announcers_.end();
  const bool restarted = was_known && known->announcement.identity.incarnation != heard.identity.incarnation;

  if (in_session() && !foreign && heard.identity.host == peer_.host && heard.identity.port == peer_.port) {
    if (heard.identity.incarnation != peer_.incarnation) {
      give_up("peer", fmt::format("fabricd on {} has started anew", peer_.name));
      begin_looking();
    } else if (heard.leaving) {
      give_up("peer", fmt::format("fabricd on {} has stopped", peer_.name));
      begin_looking();
    } else {
      check_mtu(heard.path_mtu);
    }
  }
  if (heard.leaving) {
    if (was_known) announcers_.erase(known);
    return;
  }
  if (was_known) {
    *known = {event.source, heard, now_};
  } else if (announcers_.size() < kMostAnnouncers) {
    announcers_.push_back({event.source, heard, now_});
  }
  if (suspect_ && suspect_->identity.host == heard.identity.host &&
      suspect_->identity.port == heard.identity.port) {
    if (suspect_->identity.incarnation == heard.identity.incarnation &&
        now_ - suspect_->given_up < timers_.false_alarm) {
      ++counters_.false_alarms;
      ack_timeout_ = std::min<std::uint8_t>(ack_timeout_ + 1, kLongestTimeout);
    }
    suspect_.reset();
  }
  // It may not have heard this end yet.
  if (!was_known || restarted) announce_at_ = now_;
}

void Greeting::announce(bool leaving) {
  Announcement announcement;
  announcement.leaving = leaving;
  announcement.identity = self_;
  announcement.service = port_.service;
  announcement.path_mtu = port_.path_mtu;
  actions_.emplace_back(Announce{std::move(announcement)});
  ++counters_.announcements_sent;
}

// --- Connecting

void Greeting::on(const Requested& event) {
  ++counters_.requests;
  const ConnectionParameters& wish = event.parameters;
  if (state_ == State::unusable || state_ == State::stopped) {
    return reject(event.request, "the port is not ready");
  }
  if (wish.version != self_.version) {
    return reject(event.request, fmt::format("this fabricd speaks version {} to its neighbours, yours {}",
                                             self_.version, wish.version));
  }
  if (const std::string why = refusal(); !why.empty()) return reject(event.request, why);
  const auto known = std::find_if(announcers_.begin(), announcers_.end(), [&](const Announcer& a) {
    return a.announcement.identity.host == wish.host && a.announcement.identity.port == wish.port &&
           a.announcement.identity.incarnation == wish.incarnation;
  });
  if (known == announcers_.end()) {
    announce_at_ = now_;
    return reject(event.request, "your announcement was not heard here yet");
  }
  if (connects(wish.host)) return reject(event.request, "the end with the lower host GUID connects");

  const bool second = state_ == State::accepting && half_ && attempt_ == wish.attempt &&
                      half_->parameters.purpose != wish.purpose;
  if (!second) {
    // Whoever requests has nothing left of an earlier connection.
    give_up("peer", fmt::format("{} connects anew", known->announcement.identity.name));
    enter(State::accepting);
    ++session_;
    attempt_ = wish.attempt;
    peer_ = known->announcement.identity;
    half_ = Half{event.request, wish};
    deadline_ = now_ + timers_.attempt;
    return;
  }
  const Half first = *std::exchange(half_, std::nullopt);
  const bool data_first = first.parameters.purpose == ConnectionParameters::Purpose::data;
  terms_ = terms_with(wish);
  peer_mtu_ = wish.path_mtu;
  actions_.emplace_back(Accept{session_, data_first ? first.request : event.request,
                               data_first ? event.request : first.request,
                               parameters(ConnectionParameters::Purpose::data), terms_});
}

void Greeting::on(const RequestGone& event) {
  if (state_ != State::accepting || !half_ || half_->request != event.request) return;
  half_.reset();
  fail(fmt::format("{} has withdrawn its request", peer_.name));
}

void Greeting::on(const Replied& event) {
  if (state_ != State::connecting || event.session != session_) return;
  const ConnectionParameters& reply = event.parameters;
  if (reply.host != peer_.host || reply.incarnation != peer_.incarnation || reply.attempt != attempt_) {
    return fail(fmt::format("another than {} has answered the request", peer_.name));
  }
  if (!replied_) {
    replied_ = reply;
    return;
  }
  terms_ = terms_with(reply);
  peer_mtu_ = reply.path_mtu;
  actions_.emplace_back(Establish{session_, terms_});
}

void Greeting::on(const Connected& event) {
  if (!in_session() || event.session != session_) return;
  enter(State::connected);
  ++counters_.connections;
  connected_at_ = now_;
  last_failure_.clear();
  suspect_.reset();
  actions_.emplace_back(Up{peer_, terms_});
}

void Greeting::on(const Failed& event) {
  if (in_session() && event.session == session_) fail(event.reason);
}

void Greeting::on(const Lost& event) {
  if (state_ == State::unusable || state_ == State::stopped) return;
  learn_from(event.detector);
  give_up(event.detector, event.reason);
  announcers_.clear();
  begin_looking();
}

void Greeting::on(const TimerExpired&) {}  // consider() looks at the clock

void Greeting::consider() {
  std::erase_if(announcers_, [this](const Announcer& a) {
    const auto at = forgotten_at(a);
    return at && *at <= now_;
  });
  if (announcers_.empty()) last_failure_.clear();  // whoever it was with is gone
  if ((state_ == State::connecting || state_ == State::accepting) && deadline_ <= now_) {
    fail(fmt::format("{} announces itself, but connecting has taken too long", peer_.name));
  }
  const std::string refused = refusal();
  if (!refused.empty() && in_session()) {
    give_up("local", refused);
    begin_looking();
  }
  if (announce_at_ <= now_) {
    announce(false);
    announce_at_ = now_ + announce_after_;
    announce_after_ = state_ == State::connected ? timers_.announce_connected
                                                 : std::min(2 * announce_after_, timers_.announce);
  }
  if (state_ != State::looking || !refused.empty() || announcers_.empty() || retry_at_ > now_) return;
  const Announcer& found = announcers_.front();
  if (!connects(found.announcement.identity.host)) return;
  enter(State::connecting);
  ++session_;
  ++counters_.attempts;
  peer_ = found.announcement.identity;
  attempt_ = session_;
  replied_.reset();
  deadline_ = now_ + timers_.attempt;
  actions_.emplace_back(Connect{session_, found.source, found.announcement.service,
                                parameters(ConnectionParameters::Purpose::data)});
}

// --- Parts

/// The only place that changes the state.
void Greeting::enter(State state) {
  state_ = state;
}

void Greeting::begin_looking() {
  enter(State::looking);
  announce_at_ = now_;
  announce_after_ = timers_.announce_first;
  retry_at_ = now_;
}

void Greeting::fail(const std::string& reason) {
  give_up("local", reason);
  begin_looking();
  last_failure_ = reason;
  retry_at_ = now_ + timers_.retry;
}

void Greeting::give_up(const std::string& detector, const std::string& reason) {
  if (!in_session()) return;
  ++counters_.given_up;
  if (half_) reject(std::exchange(half_, std::nullopt)->request, reason);
  actions_.emplace_back(GiveUp{session_, detector, reason});
}

void Greeting::reject(Request request, const std::string& reason) {
  ++counters_.rejections_sent;
  actions_.emplace_back(Reject{request, {self_.version, reason}});
}

bool Greeting::in_session() const {
  switch (state_) {
    case State::connecting:
    case State::accepting:
    case State::connected:
      return true;
    case State::unusable:
    case State::looking:
    case State::stopped:
      break;
  }
  return false;
}

/// A neighbour that is connected is watched by other means.
std::optional<TimePoint> Greeting::forgotten_at(const Announcer& announcer) const {
  if (state_ == State::connected && announcer.announcement.identity.host == peer_.host &&
      announcer.announcement.identity.port == peer_.port) {
    return std::nullopt;
  }
  return announcer.heard + timers_.forget;
}

std::string Greeting::refusal() const {
  if (announcers_.empty()) return {};
  if (announcers_.size() > 1) {
    return fmt::format("{} others announce themselves here: a switch is in between, and this is no cable",
                       announcers_.size());
  }
  const Announcement& other = announcers_.front().announcement;
  if (other.format != kWireFormat) {
    return fmt::format(
        "the fabricd at the other end announces itself in format {}, this one in {}: install "
        "the same version on both",
        other.format, kWireFormat);
  }
  const verbs::Identity& identity = other.identity;
  if (identity.host == self_.host) {
    if (identity.incarnation != self_.incarnation) {
      return fmt::format("{} at the other end has the GUID of this host, {}", identity.name,
                         to_string(self_.host));
    }
    if (identity.port == self_.port) return "what this port sends comes back to it";
    return fmt::format("the cable goes to port {} of this same host", identity.port + 1);
  }
  if (identity.version != self_.version) {
    return fmt::format(
        "fabricd on {} speaks version {} to its neighbours, this one {}: install the same "
        "version on both",
        identity.name, identity.version, self_.version);
  }
  return {};
}

ConnectionParameters Greeting::parameters(ConnectionParameters::Purpose purpose) const {
  return {purpose,       self_.host, self_.port,     self_.incarnation,
          self_.version, attempt_,   port_.path_mtu, ack_timeout_};
}

Terms Greeting::terms_with(const ConnectionParameters& other) const {
  return {std::min(port_.path_mtu, other.path_mtu),
          std::clamp(other.ack_timeout, ack_timeout_, kLongestTimeout)};
}

/// An end's MTU is not what it was when the terms were made.
void Greeting::check_mtu(std::uint16_t others) {
  if (state_ != State::connected) return;
  peer_mtu_ = others;
  const std::uint16_t agreed = std::min(port_.path_mtu, peer_mtu_);
  if (agreed == terms_.path_mtu) return;
  give_up("local", fmt::format("the path MTU changes from {} to {}", terms_.path_mtu, agreed));
  begin_looking();
}

/// From the end of a connection.
void Greeting::learn_from(const std::string& detector) {
  if (state_ != State::connected) return;
  if (now_ - connected_at_ >= timers_.calm) ack_timeout_ = first_ack_timeout_;
  if (detector == "completion" || detector == "heartbeat") suspect_ = Suspect{peer_, now_};
}

// --- Inspection

verbs::CablePhase Greeting::phase() const {
  switch (state_) {
    case State::unusable:
      return trouble_.phase;
    case State::looking:
      return refusal().empty() ? verbs::CablePhase::greeting : verbs::CablePhase::refused;
    case State::connecting:
    case State::accepting:
      return verbs::CablePhase::greeting;
    case State::connected:
      return verbs::CablePhase::connected;
    case State::stopped:
      break;
  }
  return verbs::CablePhase::down;
}

std::string Greeting::reason() const {
  switch (state_) {
    case State::unusable:
      return trouble_.reason;
    case State::looking: {
      if (std::string why = refusal(); !why.empty()) return why;
      if (!last_failure_.empty()) return last_failure_;
      if (announcers_.empty()) return "the link is up, but no fabricd announces itself at the other end";
      return fmt::format("waiting for {} to connect", announcers_.front().announcement.identity.name);
    }
    case State::connecting:
    case State::accepting:
      return last_failure_.empty() ? fmt::format("connecting to {}", peer_.name) : last_failure_;
    case State::connected:
      return {};
    case State::stopped:
      break;
  }
  return "fabricd stops";
}

std::optional<verbs::Identity> Greeting::neighbour() const {
  if (in_session()) return peer_;
  if (announcers_.size() != 1 || announcers_.front().announcement.format != kWireFormat) return std::nullopt;
  return announcers_.front().announcement.identity;
}

}  // namespace fabric::daemon
