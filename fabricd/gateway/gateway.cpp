// How the pieces are joined.
//
//   LanPort       state, advertisements, answers    ──▶ give() ──▶ GatewayElection ──▶ perform()
//   the ring      peer_state(), peer_reachable()    ──▶ give()
//   perform()     SendAdvertisement, Announce,
//                 ProbeLan                          ──▶ LanPort
//                 BecomeMaster, BecomeBackup        ──▶ VirtualInterface
//                 FloodState                        ──▶ callbacks.flood, both families in one message
//                 GatewayNotice                     ──▶ callbacks.record
//
// IPv4 and IPv6 are virtual routers of their own (RFC 9568, 1.2) with an election each; they share the LAN
// port and the ring channel. Everything runs on the control thread.
//
// Before a timer is given to an election, the sockets are read: after a pause of this process, what the
// master said meanwhile is there, and is heard first.
#include "fabricd/gateway/gateway.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/array.hpp>
#include <chrono>
#include <optional>

#include "fabricd/gateway/lan_port.hpp"
#include "fabricd/gateway/virtual_interface.hpp"
#include "routing/codec.hpp"

namespace fabric::daemon {

namespace {

using namespace std::chrono_literals;
using routing::GatewayState;
using routing::IpAddress;

constexpr auto kLinger = 500ms;         ///< an old master goes on passing on what still comes to it
constexpr auto kRecordAtMost = 10s;     ///< between records of discards for the same reason
constexpr std::size_t kHistory = 20;    ///< changes that view() tells of
constexpr std::size_t kPeerState = 33;  ///< bytes of an encoded routing::GatewayPeerState

TimePoint now() {
  return TimePoint(std::chrono::steady_clock::now().time_since_epoch());
}

std::string utc(std::chrono::system_clock::time_point time) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(time);
  const std::time_t whole = std::chrono::system_clock::to_time_t(seconds);
  std::tm parts{};
  gmtime_r(&whole, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  return fmt::format("{}.{:03}Z", text, (time - seconds) / 1ms);
}

double milliseconds(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace

class Gateway::Implementation {
 public:
  Implementation(boost::asio::io_context& io, const Configuration::Gateway& settings, Guid self,
                 Callbacks callbacks);
  ~Implementation();

  void peer_state(Guid host, std::span<const std::byte> state);
  void peer_reachable(Guid host, bool reachable);
  void upstream(bool ipv4, const Upstream& upstream);
  void ring_reachable(bool reachable);
  std::string handover();
  [[nodiscard]] bool serves(bool ipv4) const;
  [[nodiscard]] boost::json::object view() const;

 private:
  /// A virtual router: one address family.
  struct Router {
    Router(boost::asio::io_context& io, bool family, const routing::GatewaySettings& settings,
           const VirtualInterface::Settings& interface_settings)
        : ipv4(family), election(settings), interface(interface_settings), timer(io), rest(io) {}

    bool ipv4;
    routing::GatewayElection election;
    VirtualInterface interface;
    boost::asio::steady_timer timer, rest;
    std::optional<TimePoint> timer_at;
    Upstream upstream{true, {}};
    std::vector<IpAddress> probed;
    routing::GatewayPeerState flooded;
    std::vector<std::string> problems;
    struct Change {
      std::chrono::system_clock::time_point time;
      std::string kind, text;
    };
    std::vector<Change> history;
  };

  Router* router(bool ipv4) {
    const auto found = std::find_if(routers_.begin(), routers_.end(),
                                    [&](const auto& candidate) { return candidate->ipv4 == ipv4; });
    return found == routers_.end() ? nullptr : found->get();
  }
  void add(bool ipv4);

  void give(Router& router, const routing::GatewayEvent& event);
  void perform(Router& router, const routing::SendAdvertisement& action);
  void perform(Router& router, const routing::BecomeMaster&);
  void perform(Router& router, const routing::BecomeBackup&);
  void perform(Router& router, const routing::Announce&);
  void perform(Router& router, const routing::ProbeLan& action);
  void perform(Router& router, const routing::FloodState& action);
  void perform(Router& router, const routing::GatewayNotice& action);
  void schedule(Router& router);
  void tell_changed();

  void lan_changed();
  void received(const VrrpDatagram& datagram);
  void discarded(VrrpDiscard reason, const VrrpDatagram& datagram);
  void answered(const IpAddress& address);
  [[nodiscard]] IpAddress primary(const Router& router) const;
  [[nodiscard]] boost::json::object view(const Router& router) const;

  boost::asio::io_context& io_;
  const Configuration::Gateway settings_;
  const Guid self_;
  Callbacks callbacks_;
  bool ring_ = true;
  VrrpChecksum checksum_;
  BorrowedSettings lan_settings_;
  std::vector<std::unique_ptr<Router>> routers_;
  std::unique_ptr<LanPort> lan_;
  struct Discards {
    std::uint64_t count = 0;
    std::optional<TimePoint> recorded;
  };
  std::array<Discards, kVrrpDiscards> discards_;
  std::uint64_t other_vrids_ = 0;
  /// What is posted holds a weak pointer to it, and does nothing when it is gone.
  std::shared_ptr<Implementation*> alive_ = std::make_shared<Implementation*>(this);
  bool told_ = false;
};

Gateway::Implementation::Implementation(boost::asio::io_context& io, const Configuration::Gateway& settings,
                                        Guid self, Callbacks callbacks)
    : io_(io),
      settings_(settings),
      self_(self),
      callbacks_(std::move(callbacks)),
      checksum_(settings.checksum == Configuration::Gateway::Checksum::message ? VrrpChecksum::message
                                                                               : VrrpChecksum::pseudo) {
  remove_leftover_interfaces();
  add(true);
  add(false);
  std::vector<IpAddress> virtual_addresses;
  if (settings_.priority != routing::kOwnerPriority) {  // the owner's virtual addresses are its own
    for (const auto& address : settings_.addresses) virtual_addresses.push_back(address.address);
  }
  LanPort::Callbacks lan;
  lan.changed = [this] { lan_changed(); };
  lan.received = [this](const VrrpDatagram& datagram) { received(datagram); };
  lan.answered = [this](const IpAddress& address) { answered(address); };
  lan_ = std::make_unique<LanPort>(io_, settings_.interface, std::move(virtual_addresses), std::move(lan));
  lan_changed();
  for (const auto& each : routers_) give(*each, routing::GatewayStart{});
}

Gateway::Implementation::~Implementation() {
  for (const auto& each : routers_) give(*each, routing::GatewayShutdown{});
}

void Gateway::Implementation::add(bool ipv4) {
  routing::GatewaySettings settings;
  settings.self = self_;
  settings.vrid = settings_.vrid;
  settings.priority = settings_.priority;
  settings.version = ipv4 ? settings_.version : 3;
  settings.interval = std::chrono::duration_cast<routing::Centiseconds>(settings_.interval);
  settings.preempt = settings_.preempt;
  settings.preempt_delay = settings_.preempt_delay;
  settings.track_ring = settings_.track_ring;
  settings.track_default_route = settings_.track_default_route;
  for (const auto& address : settings_.addresses) {
    if (is_ipv4(address.address) == ipv4) settings.addresses.push_back(address.address);
  }
  if (settings.addresses.empty()) return;
  if (!ipv4) {  // RFC 9568, 5.2.9: a link-local address is the first
    const auto is_link_local = [](const IpAddress& a) { return a[0] == 0xFE && (a[1] & 0xC0) == 0x80; };
    if (std::none_of(settings.addresses.begin(), settings.addresses.end(), is_link_local)) {
      settings.addresses.push_back(link_local(virtual_mac(false, settings_.vrid)));
    }
    std::stable_partition(settings.addresses.begin(), settings.addresses.end(), is_link_local);
  }
  VirtualInterface::Settings interface;
  interface.lan = settings_.interface;
  interface.ipv4 = ipv4;
  interface.vrid = settings_.vrid;
  interface.addresses = settings.addresses;
  interface.accept = settings_.accept || settings_.priority == routing::kOwnerPriority;
  routers_.push_back(std::make_unique<Router>(io_, ipv4, settings, interface));
}

// --- events

void Gateway::Implementation::give(Router& router, const routing::GatewayEvent& event) {
  const GatewayState before = router.election.state();
  for (const auto& action : router.election.handle(now(), event)) {
    std::visit([&](const auto& a) { perform(router, a); }, action);
  }
  schedule(router);
  if (router.election.state() != before) tell_changed();
}

void Gateway::Implementation::schedule(Router& router) {
  const auto next = router.election.next_timer();
  if (next == router.timer_at) return;
  router.timer_at = next;
  if (!next) {
    router.timer.cancel();
    return;
  }
  router.timer.expires_at(std::chrono::steady_clock::time_point(next->time_since_epoch()));
  router.timer.async_wait(
      [this, &router, alive = std::weak_ptr(alive_)](const boost::system::error_code& error) {
        if (error || alive.expired()) return;
        lan_->read();
        router.timer_at.reset();
        give(router, routing::GatewayTimerExpired{});
      });
}

void Gateway::Implementation::tell_changed() {
  if (!callbacks_.changed || told_) return;
  told_ = true;
  boost::asio::post(io_, [this, alive = std::weak_ptr(alive_)] {
    if (alive.expired()) return;
    told_ = false;
    callbacks_.changed();
  });
}

IpAddress Gateway::Implementation::primary(const Router& router) const {
  return router.ipv4 ? lan_->state().primary4 : lan_->state().primary6;
}

void Gateway::Implementation::lan_changed() {
  if (lan_->state().index != 0) lan_settings_.keep_to_own_addresses(settings_.interface);
  for (const auto& each : routers_) {
    if (lan_->state().index != 0) each->problems = each->interface.prepare();
    give(*each, routing::LanChanged{lan_->state().up, primary(*each)});
  }
}

void Gateway::Implementation::received(const VrrpDatagram& datagram) {
  const auto decoded = decode_vrrp(datagram);
  if (const auto* reason = std::get_if<VrrpDiscard>(&decoded)) return discarded(*reason, datagram);
  const auto& packet = std::get<VrrpPacket>(decoded);
  if (packet.vrid != settings_.vrid) {
    ++other_vrids_;
    return;
  }
  const bool ipv4 = is_ipv4(datagram.source);
  if (ipv4 && packet.version == 3 && settings_.checksum == Configuration::Gateway::Checksum::automatic) {
    checksum_ = packet.checksum;
  }
  Router* target = router(ipv4);
  if (target == nullptr) return;
  give(*target, routing::AdvertisementReceived{datagram.source, packet.version, packet.priority,
                                               packet.interval, packet.addresses});
}

void Gateway::Implementation::discarded(VrrpDiscard reason, const VrrpDatagram& datagram) {
  Discards& discards = discards_[static_cast<std::size_t>(reason)];
  ++discards.count;
  if (discards.recorded && now() < *discards.recorded + kRecordAtMost) return;
  discards.recorded = now();
  callbacks_.record(
      EventLevel::warning, "gateway-discard",
      fmt::format("VRRP packet from {} discarded: {}", to_string(datagram.source), text_of(reason)),
      {{"reason", name_of(reason)}, {"count", discards.count}});
}

void Gateway::Implementation::answered(const IpAddress& address) {
  for (const auto& each : routers_) {
    const auto& probed = each->probed;
    if (std::find(probed.begin(), probed.end(), address) != probed.end()) {
      give(*each, routing::LanProbeAnswered{});
    }
  }
}

// --- actions

void Gateway::Implementation::perform(Router& router, const routing::SendAdvertisement& action) {
  VrrpPacket packet;
  packet.version = router.election.settings().version;
  packet.vrid = settings_.vrid;
  packet.priority = action.priority;
  packet.interval = action.interval;
  packet.addresses = router.election.settings().addresses;
  packet.checksum = checksum_;
  const IpAddress source = primary(router);
  lan_->send(vrrp_frame(router.interface.mac(), source, encode_vrrp(packet, source)));
}

void Gateway::Implementation::perform(Router& router, const routing::BecomeMaster&) {
  router.rest.cancel();
  router.problems = router.interface.own();
  for (const std::string& problem : router.problems) {
    callbacks_.record(EventLevel::error, "gateway-kernel", problem, {});
  }
}

void Gateway::Implementation::perform(Router& router, const routing::BecomeBackup&) {
  router.interface.release();
  if (!lan_->state().up) return router.interface.rest();
  router.rest.expires_after(kLinger);
  router.rest.async_wait([&router, alive = std::weak_ptr(alive_)](const boost::system::error_code& error) {
    if (error || alive.expired() || router.election.state() == GatewayState::master) return;
    router.interface.rest();
  });
}

void Gateway::Implementation::perform(Router& router, const routing::Announce&) {
  for (const IpAddress& address : router.election.settings().addresses) {
    lan_->send(announcement(router.interface.mac(), address));
  }
}

void Gateway::Implementation::perform(Router& router, const routing::ProbeLan& action) {
  // Whether a cable works is not a matter of address families: routers of both are asked.
  router.probed = action.peers;
  for (const auto& each : routers_) {
    const auto& hops = each->upstream.next_hops;
    router.probed.insert(router.probed.end(), hops.begin(), hops.end());
  }
  for (const IpAddress& address : router.probed) {
    const IpAddress source = is_ipv4(address) ? lan_->state().primary4 : lan_->state().primary6;
    if (source != IpAddress{}) lan_->send(address_request(lan_->state().mac, source, address));
  }
}

void Gateway::Implementation::perform(Router& router, const routing::FloodState& action) {
  router.flooded = action.state;
  std::vector<std::byte> bytes;
  routing::Writer out(bytes);
  for (const auto& each : routers_) {
    out.number(static_cast<std::uint8_t>(each->ipv4 ? 4 : 6));
    out.number(settings_.vrid);
    out.bytes(encode(each->flooded));
  }
  if (callbacks_.flood) callbacks_.flood(bytes);
}

void Gateway::Implementation::perform(Router& router, const routing::GatewayNotice& action) {
  router.history.push_back({std::chrono::system_clock::now(), action.kind, action.text});
  if (router.history.size() > kHistory) router.history.erase(router.history.begin());
  const char* family = router.ipv4 ? "IPv4" : "IPv6";
  callbacks_.record(action.warning ? EventLevel::warning : EventLevel::info, action.kind,
                    fmt::format("{} gateway: {}", family, action.text),
                    {{"family", router.ipv4 ? "ipv4" : "ipv6"},
                     {"state", to_string(router.election.state())},
                     {"vrid", settings_.vrid}});
  tell_changed();
}

// --- what the daemon asks and tells

void Gateway::Implementation::peer_state(Guid host, std::span<const std::byte> state) {
  for (const auto& each : routers_) {
    std::optional<routing::GatewayPeerState> found;
    routing::Reader in(state);
    while (!in.bad() && !in.empty()) {
      const auto family = in.number<std::uint8_t>();
      const auto vrid = in.number<std::uint8_t>();
      const auto bytes = in.bytes(kPeerState);
      if (!in.bad() && family == (each->ipv4 ? 4 : 6) && vrid == settings_.vrid) {
        found = routing::decode_peer_state(bytes);
      }
    }
    give(*each, routing::PeerStateReceived{host, found});
  }
}

void Gateway::Implementation::peer_reachable(Guid host, bool reachable) {
  for (const auto& each : routers_) give(*each, routing::PeerReachable{host, reachable});
}

void Gateway::Implementation::upstream(bool ipv4, const Upstream& upstream) {
  Router* target = router(ipv4);
  if (target == nullptr) return;
  target->upstream = upstream;
  give(*target, routing::TrackingChanged{ring_, upstream.present});
}

void Gateway::Implementation::ring_reachable(bool reachable) {
  ring_ = reachable;
  for (const auto& each : routers_) give(*each, routing::TrackingChanged{ring_, each->upstream.present});
}

std::string Gateway::Implementation::handover() {
  bool any = false;
  for (const auto& each : routers_) {
    const auto view = each->election.view();
    if (view.state != GatewayState::master) continue;
    any = true;
    if (!view.holder) return "the other gateway has not agreed that this one is master";
    const bool possible = std::any_of(view.peers.begin(), view.peers.end(),
                                      [](const auto& peer) { return peer.reachable && peer.state.serves; });
    if (!possible) return "there is no other gateway that the ring reaches and that could serve";
  }
  if (!any) return "this host is not master";
  for (const auto& each : routers_) {
    if (each->election.state() == GatewayState::master) give(*each, routing::HandoverRequested{});
  }
  return "";
}

bool Gateway::Implementation::serves(bool ipv4) const {
  return std::any_of(routers_.begin(), routers_.end(), [&](const auto& each) {
    return each->ipv4 == ipv4 && each->election.state() == GatewayState::master;
  });
}

boost::json::object Gateway::Implementation::view(const Router& router) const {
  const routing::GatewayView view = router.election.view();
  const auto& settings = router.election.settings();
  const TimePoint time = now();
  boost::json::array addresses, peers, history, problems;
  for (const IpAddress& address : settings.addresses) addresses.emplace_back(to_string(address));
  for (const auto& peer : view.peers) {
    peers.push_back({{"guid", to_string(peer.host)},
                     {"reachable", peer.reachable},
                     {"state", to_string(peer.state.state)},
                     {"priority", peer.state.priority},
                     {"address", to_string(peer.state.primary)},
                     {"lan", to_string(peer.state.lan)},
                     {"hears-master", peer.state.hears_master},
                     {"serves", peer.state.serves}});
  }
  for (const auto& change : router.history) {
    history.push_back({{"time", utc(change.time)}, {"kind", change.kind}, {"text", change.text}});
  }
  for (const std::string& problem : router.problems) problems.emplace_back(problem);
  boost::json::value last_source, last_seen_ms;
  if (view.heard) {
    last_source = to_string(view.heard_from);
    last_seen_ms = milliseconds(time - *view.heard);
  }
  return {{"vrid", settings.vrid},
          {"family", router.ipv4 ? "ipv4" : "ipv6"},
          {"version", fmt::format("vrrp-v{}", settings.version)},
          {"state", to_string(view.state)},
          {"since-s", std::chrono::duration<double>(time - view.since).count()},
          {"reason", view.reason},
          {"is-owner", settings.priority == routing::kOwnerPriority},
          {"priority", settings.priority},
          {"effective-priority", view.effective_priority},
          {"preempt", boost::json::object{{"enabled", settings.preempt},
                                          {"hold-time-ms", milliseconds(settings.preempt_delay)}}},
          {"accept-mode", settings_.accept},
          {"advertise-interval-centi-sec", settings.interval.count()},
          {"master-interval-centi-sec", view.interval.count()},
          {"skew-time-ms", milliseconds(view.skew)},
          {"master-down-interval-ms", milliseconds(view.master_down)},
          {"virtual-addresses", addresses},
          {"interface", router.interface.name()},
          {"lan", boost::json::object{{"interface", settings_.interface},
                                      {"up", view.lan_up},
                                      {"address", view.primary == IpAddress{} ? "" : to_string(view.primary)},
                                      {"health", to_string(view.lan)},
                                      {"last-adv-source", last_source},
                                      {"last-adv-ms", last_seen_ms},
                                      {"last-adv-priority", view.heard_priority}}},
          {"ring", boost::json::object{{"term", view.claim.term},
                                       {"holder", to_string(view.claim.holder)},
                                       {"holds", view.holder},
                                       {"peers", peers}}},
          {"default-route", router.upstream.present},
          {"fault", view.fault},
          {"problems", problems},
          {"history", history},
          {"statistics", boost::json::object{{"master-transitions", view.times_master},
                                             {"advertisement-rcvd", view.advertisements_received},
                                             {"advertisement-sent", view.advertisements_sent},
                                             {"priority-zero-pkts-rcvd", view.zero_received},
                                             {"priority-zero-pkts-sent", view.zero_sent},
                                             {"interval-errors", view.interval_errors},
                                             {"version-errors", view.version_errors},
                                             {"address-list-errors", view.address_errors}}}};
}

boost::json::object Gateway::Implementation::view() const {
  boost::json::array instances;
  for (const auto& each : routers_) instances.push_back(view(*each));
  boost::json::object discards{{"vrid-errors", other_vrids_}};
  for (std::size_t i = 0; i < discards_.size(); ++i) {
    discards[name_of(static_cast<VrrpDiscard>(i))] = discards_[i].count;
  }
  return {{"vrrp-instance", instances},
          {"originate", settings_.originate_all ? "all" : "master"},
          {"checksum", checksum_ == VrrpChecksum::pseudo ? "pseudo" : "message"},
          {"discards", discards}};
}

// --- the face

Gateway::Gateway(boost::asio::io_context& io, const Configuration::Gateway& settings, Guid self,
                 Callbacks callbacks)
    : implementation_(std::make_unique<Implementation>(io, settings, self, std::move(callbacks))) {}
Gateway::~Gateway() = default;
void Gateway::peer_state(Guid host, std::span<const std::byte> state) {
  implementation_->peer_state(host, state);
}
void Gateway::peer_reachable(Guid host, bool reachable) {
  implementation_->peer_reachable(host, reachable);
}
void Gateway::upstream(bool ipv4, const Upstream& upstream) {
  implementation_->upstream(ipv4, upstream);
}
void Gateway::ring_reachable(bool reachable) {
  implementation_->ring_reachable(reachable);
}
std::string Gateway::handover() {
  return implementation_->handover();
}
bool Gateway::serves(bool ipv4) const {
  return implementation_->serves(ipv4);
}
boost::json::object Gateway::view() const {
  return implementation_->view();
}

}  // namespace fabric::daemon
