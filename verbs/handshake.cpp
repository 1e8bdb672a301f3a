// How two fabricds agree on their connection.
//
// Both ends run the same machine, and there is one kind of message that matters: a hello, which says all that
// its sender knows (who it is, which session it is in, how far that is, its queue pairs, and which session of
// the other end it has heard of or is connected to). A hello asks nothing and needs no matching answer; it is
// sent again until the sender is up, at once when the receiver can be seen to lag behind, and never after
// that. So loss, duplicates, simultaneous starts and reordering need no cases of their own.
//
//   seeking --(a hello comes)--> open --(its queue pairs are known)--> ready --(other end is ready)--> up
//
//   A seeking ----------------------> B                 B makes queue pairs (INIT, receive buffers posted)
//     open    <---------------------- B open            A makes queue pairs, connects them to B's: RTS
//   A ready   ----------------------> B                 B connects its own: RTS. A is ready: B is up
//     up      <---------------------- B up
//
// Nobody is up before the other end is able to receive: `ready` is said of one session of the receiver by
// name, after the sender's queue pairs are in RTS towards it.
//
// A session is an attempt with its own queue pairs; (incarnation, number) names it, numbers grow. A hello
// from a later session of the same incarnation means that the other end has given the earlier one up: the
// connection is dropped at once (detector "peer"). Incarnations have no order, so that a hello from another
// incarnation could be an old one that was under way for long: it is believed when it names our present
// session, and is answered with a hello (which tells our session) until then. That costs a restarted
// neighbour one round trip.
//
// A goodbye counts only with both sessions right. A refusal (other version, own GUID) puts the cable aside
// for kRefusedRetry. The bytes that tell magic, version, kind and sender are the same in all versions.
//
// There is no specification behind this; it is described in docs/subnet.md. Threading: none.
#include "verbs/handshake.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "verbs/mad.hpp"
#include "words/text.hpp"

namespace fabric::verbs::handshake {

using namespace std::chrono_literals;

namespace {

/// Of a hello; doubles with every one that changes nothing.
constexpr auto kFirstRetry = 10ms;
/// While a fabricd is there, and while none has been heard of.
constexpr auto kLongestRetry = 160ms;
constexpr auto kLongestSeek = 1s;
/// After queue pairs could not be made or connected.
constexpr auto kHold = 500ms;
constexpr auto kRefusedRetry = 1s;

constexpr std::uint32_t kMagic = 0x46425243;  // "FBRC"

// Offsets in the message. Up to 28 the same in all versions.
constexpr std::size_t kMagicAt = 0, kVersionAt = 4, kKindAt = 6, kProgressAt = 7, kHostAt = 8,
                      kIncarnationAt = 16, kPortAt = 20, kMtuAt = 21, kNumberAt = 24, kPeerIncarnationAt = 28,
                      kPeerNumberAt = 32, kDataQpnAt = 36, kDataPsnAt = 40, kControlQpnAt = 44,
                      kControlPsnAt = 48, kNameAt = 56, kReasonAt = 120;
constexpr std::uint32_t k24Bits = 0xFFFFFF;

void store_text(std::span<std::uint8_t> bytes, const std::string& text) {
  std::copy_n(text.begin(), std::min(text.size(), kTextSize), bytes.begin());
}

/// Up to 63 bytes; what cannot be shown becomes '?'.
std::string load_text(std::span<const std::uint8_t> bytes) {
  return printable(std::as_bytes(bytes.first(kTextSize)));
}

}  // namespace

std::string_view to_string(Progress progress) {
  switch (progress) {
    case Progress::seeking:
      return "seeking";
    case Progress::open:
      return "open";
    case Progress::ready:
      return "ready";
    case Progress::up:
      return "up";
  }
  return "unknown";
}

void encode(const Message& message, std::span<std::uint8_t, kMessageSize> bytes) {
  std::fill(bytes.begin(), bytes.end(), std::uint8_t{0});
  store_big_endian<4>(bytes, kMagicAt, kMagic);
  store_big_endian<2>(bytes, kVersionAt, message.identity.version);
  bytes[kKindAt] = static_cast<std::uint8_t>(message.kind);
  bytes[kProgressAt] = static_cast<std::uint8_t>(message.progress);
  store_big_endian<8>(bytes, kHostAt, message.identity.host.value());
  store_big_endian<4>(bytes, kIncarnationAt, message.session.incarnation);
  bytes[kPortAt] = message.identity.port;
  bytes[kMtuAt] = message.mtu;
  store_big_endian<4>(bytes, kNumberAt, message.session.number);
  store_big_endian<4>(bytes, kPeerIncarnationAt, message.peer_session.incarnation);
  store_big_endian<4>(bytes, kPeerNumberAt, message.peer_session.number);
  store_big_endian<4>(bytes, kDataQpnAt, message.data.qpn.value());
  store_big_endian<4>(bytes, kDataPsnAt, message.data.psn);
  store_big_endian<4>(bytes, kControlQpnAt, message.control.qpn.value());
  store_big_endian<4>(bytes, kControlPsnAt, message.control.psn);
  store_text(bytes.subspan(kNameAt), message.identity.name);
  store_text(bytes.subspan(kReasonAt), message.reason);
}

std::optional<Message> decode(std::span<const std::uint8_t, kMessageSize> bytes) {
  const auto number = [&](std::size_t at) {
    return static_cast<std::uint32_t>(load_big_endian<4>(bytes, at));
  };
  if (number(kMagicAt) != kMagic) return std::nullopt;
  Message message;
  message.identity.version = static_cast<std::uint16_t>(load_big_endian<2>(bytes, kVersionAt));
  message.identity.host = Guid{load_big_endian<8>(bytes, kHostAt)};
  message.identity.incarnation = message.session.incarnation = number(kIncarnationAt);
  if (message.identity.host == Guid{} || bytes[kKindAt] < 1 || bytes[kKindAt] > 3) return std::nullopt;
  message.kind = Kind{bytes[kKindAt]};
  if (message.identity.version != kVersion) return message;
  if (bytes[kProgressAt] > static_cast<std::uint8_t>(Progress::up)) return std::nullopt;
  message.progress = Progress{bytes[kProgressAt]};
  message.identity.port = bytes[kPortAt];
  // An advertisement that named it, or host 0, as its neighbour would be refused by the whole ring.
  if (PortIndex(message.identity.port) == kNoPort) return std::nullopt;
  message.mtu = bytes[kMtuAt];
  message.session.number = number(kNumberAt);
  message.peer_session = {number(kPeerIncarnationAt), number(kPeerNumberAt)};
  message.data = {Qpn{number(kDataQpnAt)}, number(kDataPsnAt)};
  message.control = {Qpn{number(kControlQpnAt)}, number(kControlPsnAt)};
  message.identity.name = load_text(bytes.subspan(kNameAt));
  message.reason = load_text(bytes.subspan(kReasonAt));
  if (message.kind == Kind::hello && message.progress != Progress::seeking) {
    if (message.mtu < IBV_MTU_256 || message.mtu > IBV_MTU_4096) return std::nullopt;
    for (const auto& end : {message.data, message.control})
      if (end.qpn.value() < 2 || end.qpn.value() > k24Bits || end.psn > k24Bits) return std::nullopt;
  }
  if (message.session.number == 0) return std::nullopt;
  return message;
}

Handshake::Handshake(Identity own) : own_(std::move(own)) {
  own_.version = kVersion;
}

std::vector<Action> Handshake::handle(TimePoint now, const Event& event) {
  now_ = now;
  std::visit([this](const auto& e) { on(e); }, event);
  return std::exchange(actions_, {});
}

std::optional<TimePoint> Handshake::next_timer() const {
  return timer_;
}

// --- events ------------------------------------------------------------------------------------------------

void Handshake::on(const LinkActive& event) {
  mtu_ = event.mtu;
  if (state_ != State::idle) return;
  unanswered_ = 0;
  seek();
}

void Handshake::on(const LinkLost& event) {
  drop(event.detector, event.reason);
  peer_.reset();
  neighbour_.reset();
  enter(State::idle);
}

void Handshake::on(const Received& event) {
  ++counters_.received;
  if (state_ == State::idle || state_ == State::holding) return;
  switch (event.message.kind) {
    case Kind::hello:
      return on_hello(event.message);
    case Kind::goodbye:
      return on_goodbye(event.message);
    case Kind::refusal:
      return on_refusal(event.message);
  }
}

void Handshake::on(const Opened& event) {
  data_ = event.data;
  control_ = event.control;
  enter(State::open);
  consider();
}

void Handshake::on(const Connected&) {
  enter(State::ready);
  if (peer_->progress >= Progress::ready) return complete();
  send_hello();
}

void Handshake::on(const Failed& event) {
  drop("local", event.reason);
  enter(State::holding);
}

void Handshake::on(const Reset& event) {
  if (!has_queue_pairs()) return;
  drop(event.detector, event.reason);
  seek();
}

void Handshake::on(const Stop&) {
  if (has_queue_pairs() && peer_) {
    Message goodbye = message(Kind::goodbye);
    goodbye.reason = "the daemon stops";
    // Twice, since nobody is there any more to send it again.
    for (int i = 0; i < 2; ++i) actions_.emplace_back(Send{goodbye});
  }
  drop("local", "stopped");
  enter(State::idle);
}

void Handshake::on(const TimerExpired&) {
  if (!timer_ || now_ < *timer_) return;
  switch (state_) {
    case State::seeking:
    case State::open:
    case State::ready:
      retry_ = std::min<Duration>(2 * retry_, neighbour_ ? Duration(kLongestRetry) : Duration(kLongestSeek));
      return send_hello();
    case State::holding:
      return seek();
    case State::refused:  // asks again; what there is against it may be over
      retry_ = kRefusedRetry;
      return send_hello();
    case State::idle:
    case State::opening:
    case State::connecting:
    case State::up:
      timer_.reset();
  }
}

// --- messages ----------------------------------------------------------------------------------------------

void Handshake::on_hello(const Message& hello) {
  const bool connected = state_ == State::ready || state_ == State::up || state_ == State::connecting;
  const bool same_incarnation = peer_ && peer_->session.incarnation == hello.session.incarnation;
  if (const auto why = objection(hello)) {
    if (connected && !same_incarnation) return;  // whoever that is, the connection is with somebody else
    actions_.emplace_back(Send{[&] {
      Message refusal = message(Kind::refusal);
      refusal.peer_session = hello.session;
      refusal.reason = *why;
      return refusal;
    }()});
    return refuse(*why);
  }
  if (same_incarnation && (hello.session.number < peer_->session.number ||
                           (hello.session == peer_->session && hello.progress < peer_->progress &&
                            state_ != State::ready && state_ != State::up))) {
    ++counters_.stale;
    return;
  }
  if (state_ == State::refused) enter(State::seeking);
  if (connected && hello.session != peer_->session) {
    if (!same_incarnation && hello.peer_session != message(Kind::hello).session) return send_hello();
    drop("peer", same_incarnation ? "the neighbour began anew" : "the neighbour's daemon was restarted");
    enter(State::seeking);
  }
  unanswered_ = 0;
  if (!neighbour_ || neighbour_->host != hello.identity.host ||
      neighbour_->incarnation != hello.identity.incarnation || neighbour_->port != hello.identity.port) {
    neighbour_ = hello.identity;
    actions_.emplace_back(Met{hello.identity});
  }
  peer_ = hello;
  const bool knows_this_session = hello.peer_session == message(Kind::hello).session;
  switch (state_) {
    case State::seeking:
    case State::refused:
      enter(State::opening);
      actions_.emplace_back(Open{});
      return;
    case State::open:
      return consider();
    case State::ready:
      if (hello.progress >= Progress::ready && knows_this_session) return complete();
      return send_hello();
    case State::up:
      if (hello.progress < Progress::up || !knows_this_session) send_hello();
      return;
    case State::opening:
    case State::connecting:
    case State::idle:
    case State::holding:
      return;
  }
}

void Handshake::on_goodbye(const Message& goodbye) {
  if (!peer_ || !has_queue_pairs() || goodbye.session != peer_->session ||
      goodbye.peer_session != message(Kind::hello).session) {
    ++counters_.stale;
    return;
  }
  drop("peer", "the neighbour says: " + goodbye.reason);
  neighbour_.reset();
  // Its next life has another incarnation; what it was must not be taken for news.
  seek();
}

void Handshake::on_refusal(const Message& refusal) {
  const Session own = message(Kind::hello).session;
  if (refusal.peer_session.incarnation != own.incarnation) {
    ++counters_.stale;
    return;
  }
  // It is for an earlier hello, or says what this end has found out itself.
  if (state_ == State::up || state_ == State::ready || state_ == State::refused) return;
  refuse("The neighbour " + refusal.identity.name + " refuses: " + refusal.reason);
}

std::optional<std::string> Handshake::objection(const Message& hello) const {
  if (hello.identity.version != own_.version)
    return "The neighbour speaks version " + std::to_string(hello.identity.version) +
           " of the protocol, this end " + std::to_string(own_.version) + ".";
  if (hello.identity.host == own_.host)
    return hello.identity.incarnation == own_.incarnation
               ? "Both ends of the cable are in this host."
               : "The neighbour has this host's GUID " + fabric::to_string(own_.host) + ".";
  return std::nullopt;
}

void Handshake::consider() {
  const bool tied_to_this = peer_->peer_session == message(Kind::hello).session;
  if (peer_->progress == Progress::open || (peer_->progress >= Progress::ready && tied_to_this)) {
    enter(State::connecting);
    actions_.emplace_back(Connect{*peer_, std::min(peer_->mtu, mtu_)});
    return;
  }
  send_hello();
}

void Handshake::complete() {
  enter(State::up);
  ++counters_.completed;
  actions_.emplace_back(Up{peer_->identity});
  send_hello();
}

// --- states ------------------------------------------------------------------------------------------------

void Handshake::enter(State state) {
  state_ = state;
  switch (state) {
    case State::seeking:
    case State::open:
    case State::ready:
      retry_ = kFirstRetry;
      timer_ = now_ + retry_;
      return;
    case State::holding:
      timer_ = now_ + kHold;
      return;
    case State::refused:
      timer_ = now_ + kRefusedRetry;
      return;
    case State::idle:
    case State::opening:
    case State::connecting:
    case State::up:
      timer_.reset();
      return;
  }
}

void Handshake::drop(const std::string& detector, const std::string& reason) {
  if (!has_queue_pairs()) return;
  if (state_ == State::up) ++counters_.dropped;
  ++number_;
  data_ = control_ = {};
  actions_.emplace_back(Down{detector, reason});
}

void Handshake::seek() {
  enter(State::seeking);
  send_hello();
}

void Handshake::refuse(const std::string& reason) {
  ++counters_.refused;
  drop("peer", reason);
  enter(State::refused);
  actions_.emplace_back(Refused{reason});
}

void Handshake::send_hello() {
  ++counters_.sent;
  if (state_ == State::seeking) ++unanswered_;
  if (timer_) timer_ = now_ + retry_;
  actions_.emplace_back(Send{message(Kind::hello)});
}

Message Handshake::message(Kind kind) const {
  Message message;
  message.kind = kind;
  message.progress = progress();
  message.identity = own_;
  message.session = {own_.incarnation, number_};
  if (peer_) message.peer_session = peer_->session;
  message.data = data_;
  message.control = control_;
  message.mtu = mtu_;
  return message;
}

Progress Handshake::progress() const {
  switch (state_) {
    case State::open:
    case State::connecting:
      return Progress::open;
    case State::ready:
      return Progress::ready;
    case State::up:
      return Progress::up;
    case State::idle:
    case State::seeking:
    case State::opening:
    case State::holding:
    case State::refused:
      return Progress::seeking;
  }
  return Progress::seeking;
}

bool Handshake::has_queue_pairs() const {
  switch (state_) {
    case State::open:
    case State::connecting:
    case State::ready:
    case State::up:
      return true;
    case State::idle:
    case State::seeking:
    case State::opening:
    case State::holding:
    case State::refused:
      return false;
  }
  return false;
}

}  // namespace fabric::verbs::handshake
