// One InfiniBand port of this host, from nothing to two connected queue pairs.
//
//             port events              umad                      (control thread)
//                  |                     |
//                  v                     v
//   Device ---> this file: feeds three cores, does what they say
//                  |        SubnetManager        (SMPs, QP0)            makes the cable Active
//                  |        SubnetAdministrator  (SA MADs, QP1)         answers the hosts' kernels and tools
//                  |        Handshake            (vendor MADs, QP1)     agrees on queue pairs with the
//                  neighbour
//                  v
//   Callbacks: prepare, up, down, changed
//
// The cores decide; here are descriptors, timers and verbs. The order of things on a link: the subnet manager
// sees both ports Active -> the handshake is told -> on the first word of a neighbour queue pairs are made
// (INIT, `prepare` posts receive buffers) -> their numbers cross -> RTS -> `up`. The way down: whatever is
// first of port event, goodbye or newer session of the neighbour, change of LIDs, or reset() by the owner
// (who sees failed completions and heartbeats); `down`, queue pairs destroyed, and it begins anew.
//
// Changing LIDs under a connection breaks it, so it is given up first: by the master before it sends the Set,
// by the other end when its adapter reports IBV_EVENT_LID_CHANGE.
//
// Threading: the control thread only. The callbacks may call back into the cable; such calls are carried out
// when the present event has been dealt with.
#include "fabricd/subnet/infiniband_cable.hpp"

#include <algorithm>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <random>
#include <tuple>
#include <utility>

#include "fabricd/subnet/subnet_administrator.hpp"
#include "fabricd/subnet/subnet_manager.hpp"
#include "verbs/handshake.hpp"
#include "verbs/mad_port.hpp"

namespace fabric::daemon {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using verbs::CablePhase;

namespace {

// A dead cable must show as a failed completion within about 20 ms: (retry_cnt + 1) * 4.096 us * 2^timeout
// = 4 * 4.2 ms = 17 ms. Adapters may take up to four times as long (specification, 9.7.6.1.3), the port event
// and the heartbeat are for those.
constexpr std::uint8_t kAckTimeout = 10;
constexpr std::uint8_t kRetries = 3;
/// For ever: a receiver without a buffer is slow, not dead; the heartbeat tells the difference.
constexpr std::uint8_t kRnrRetries = 7;
/// 0.06 ms (code 5): receive queues refill in microseconds.
constexpr std::uint8_t kRnrTimer = 5;
constexpr auto kReopen = 1s;
/// Datagrams read in one go, so that a flooding neighbour cannot keep the control thread.
constexpr int kDatagramsPerTurn = 64;
/// Unanswered hellos after which people are told that nobody is there (about half a second).
constexpr unsigned kSilence = 6;

TimePoint now() {
  return TimePoint(std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now().time_since_epoch()));
}

std::uint32_t random_number() {
  static std::mt19937 random{std::random_device{}()};
  return static_cast<std::uint32_t>(random());
}

std::string hexadecimal(std::uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

/// Two reliable queue pairs that are made and destroyed together.
class QueuePairs {
 public:
  /// To INIT. Throws VerbsError.
  QueuePairs(const verbs::CableResources& resources, std::uint8_t port, std::uint16_t pkey_index)
      : port_(port), data_psn_(random_number() & 0xFFFFFF), control_psn_(random_number() & 0xFFFFFF) {
    data_ = make(resources, resources.data_cq, resources.data_cap, pkey_index);
    control_ = make(resources, resources.control_cq, resources.control_cap, pkey_index);
  }

  [[nodiscard]] ibv_qp* data() const { return data_.get(); }
  [[nodiscard]] ibv_qp* control() const { return control_.get(); }
  [[nodiscard]] verbs::handshake::QueuePairAddress data_address() const {
    return {Qpn{data_->qp_num}, data_psn_};
  }
  [[nodiscard]] verbs::handshake::QueuePairAddress control_address() const {
    return {Qpn{control_->qp_num}, control_psn_};
  }

  /// To RTS towards the neighbour's. Throws VerbsError.
  void connect(const verbs::handshake::Message& peer, Lid lid, std::uint8_t mtu) {
    connect(data_.get(), peer.data, data_psn_, lid, mtu);
    connect(control_.get(), peer.control, control_psn_, lid, mtu);
  }

 private:
  verbs::QueuePair make(const verbs::CableResources& resources, ibv_cq* queue, const ibv_qp_cap& capacity,
                        std::uint16_t pkey_index) const {
    ibv_qp_init_attr initial{};
    initial.send_cq = initial.recv_cq = queue;
    initial.cap = capacity;
    initial.qp_type = IBV_QPT_RC;
    verbs::QueuePair pair(verbs::checked(ibv_create_qp(resources.pd, &initial), "ibv_create_qp"));
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_INIT;
    attributes.pkey_index = pkey_index;
    attributes.port_num = port_;
    // An adapter acknowledges a zero-length RDMA WRITE without its host's processor: a probe for dead cables.
    attributes.qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    verbs::check(ibv_modify_qp(pair.get(), &attributes,
                               IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
                 "ibv_modify_qp to INIT");
    return pair;
  }

  void connect(ibv_qp* pair, const verbs::handshake::QueuePairAddress& peer, std::uint32_t psn, Lid lid,
               std::uint8_t mtu) const {
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_RTR;
    attributes.path_mtu = static_cast<ibv_mtu>(mtu);
    attributes.dest_qp_num = peer.qpn.value();
    attributes.rq_psn = peer.psn;
    attributes.max_dest_rd_atomic = 1;
    attributes.min_rnr_timer = kRnrTimer;
    attributes.ah_attr.dlid = lid.value();
    attributes.ah_attr.port_num = port_;
    verbs::check(ibv_modify_qp(pair, &attributes,
                               IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                   IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER),
                 "ibv_modify_qp to RTR");
    attributes = {};
    attributes.qp_state = IBV_QPS_RTS;
    attributes.timeout = kAckTimeout;
    attributes.retry_cnt = kRetries;
    attributes.rnr_retry = kRnrRetries;
    attributes.sq_psn = psn;
    attributes.max_rd_atomic = 1;
    verbs::check(ibv_modify_qp(pair, &attributes,
                               IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                   IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC),
                 "ibv_modify_qp to RTS");
  }

  std::uint8_t port_;
  std::uint32_t data_psn_, control_psn_;
  verbs::QueuePair data_, control_;
};

class InfinibandCable final : public verbs::Cable {
 public:
  InfinibandCable(asio::io_context& io, verbs::Device& device, InfinibandCableConfiguration configuration,
                  verbs::CableResources resources, Callbacks callbacks)
      : device_(device),
        configuration_(std::move(configuration)),
        resources_(resources),
        callbacks_(std::move(callbacks)),
        descriptor_(io),
        manager_timer_(io),
        handshake_timer_(io),
        reopen_timer_(io) {
    settings_.host = configuration_.identity.host;
    settings_.port = configuration_.device_port;
    settings_.priority = configuration_.priority;
    settings_.m_key = configuration_.m_key;
  }
  ~InfinibandCable() override {
    callbacks_ = {};
    stop();
  }
  InfinibandCable(const InfinibandCable&) = delete;
  InfinibandCable& operator=(const InfinibandCable&) = delete;

  // --- Cable
  void start() override {
    if (std::exchange(started_, true)) return;
    carry_out([this] { open(); });
  }

  void stop() override {
    if (!std::exchange(started_, false)) return;
    carry_out([this] {
      reopen_timer_.cancel();
      close([this] { tell(verbs::handshake::Stop{}); });
      reason_ = "stopped";
    });
  }

  void reset(const std::string& detector, const std::string& reason) override {
    carry_out([this, detector, reason] {
      if (!handshake_) return;
      ++resets_;
      tell(verbs::handshake::Reset{detector, reason});
    });
  }

  void set_lids(const std::map<Guid, Lid>& base_lids, std::uint8_t lmc) override {
    carry_out([this, base_lids, lmc] {
      settings_.base_lids = base_lids;
      settings_.lmc = lmc;
      if (manager_) tell(subnet::SettingsChanged{settings_});
    });
  }

  [[nodiscard]] const verbs::CableStatus& status() const override {
    status_ = describe();
    return status_;
  }

 private:
  // --- one event at a time

  /// Runs `what` now, or after the event that is being dealt with.
  void carry_out(std::function<void()> what) {
    waiting_.push_back(std::move(what));
    if (busy_) return;
    {
      struct Turn {
        bool& busy;
        explicit Turn(bool& flag) : busy(flag) { busy = true; }
        ~Turn() { busy = false; }
      } const turn(busy_);
      while (!waiting_.empty()) {
        const auto next = std::move(waiting_.front());
        waiting_.pop_front();
        next();
      }
    }
    tell_of_changes();
  }

  /// A handler for Asio that does nothing once `life` has ended: of this object, or of the open port.
  template <class Handler>
  auto guarded(const std::shared_ptr<const void>& life, Handler handler) {
    return [this, life = std::weak_ptr<const void>(life), handler](const boost::system::error_code& error) {
      if (error || life.expired()) return;
      carry_out(handler);
    };
  }

  // --- opening and closing

  void open() {
    try {
      try {
        mad_port_.emplace(device_.name(), configuration_.device_port, true);
        settings_.manage = true;
      } catch (const verbs::VerbsError& error) {
        if (error.code().value() != EBUSY) throw;
        mad_port_.emplace(device_.name(), configuration_.device_port, false);
        settings_.manage = false;
      }
      settings_.port_guid = device_.port_guid(configuration_.device_port);
      descriptor_.assign(mad_port_->descriptor());
    } catch (const std::system_error& error) {
      mad_port_.reset();
      reason_ = "The port's management interface cannot be opened: " + std::string(error.what());
      if (error.code().value() == EACCES || error.code().value() == EPERM || error.code().value() == ENODEV ||
          error.code().value() == ENOENT)
        reason_ += ". Load the kernel module ib_umad, and run as root.";
      return open_later();
    }
    reason_ = settings_.manage ? "" : "Another program on this host is the subnet manager of this port.";
    port_life_ = std::make_shared<int>();
    settings_.first_tid = random_number();
    manager_.emplace(settings_);
    handshake_.emplace(configuration_.identity);
    device_.on_port_event(configuration_.device_port,
                          [this](ibv_event_type type) { carry_out([this, type] { on_port_event(type); }); });
    listen();
    tell(subnet::Start{});
  }

  void open_later() {
    reopen_timer_.expires_after(kReopen);
    reopen_timer_.async_wait(guarded(object_life_, [this] {
      if (started_) open();
    }));
  }

  template <class Farewell>
  void close(Farewell farewell) {
    if (!mad_port_) return;
    farewell();
    tell(subnet::Stop{});
    device_.on_port_event(configuration_.device_port, {});
    port_life_.reset();
    manager_timer_.cancel();
    handshake_timer_.cancel();
    manager_due_.reset();
    handshake_due_.reset();
    descriptor_.release();
    manager_.reset();
    handshake_.reset();
    mad_port_.reset();
    link_told_ = false;
  }

  // --- what comes in

  void listen() {
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                           guarded(port_life_, [this] { read(); }));
  }

  void read() {
    try {
      for (int i = 0; i < kDatagramsPerTurn && mad_port_; ++i) {
        const auto incoming = mad_port_->receive();
        if (!incoming) break;
        take(*incoming);
      }
    } catch (const verbs::VerbsError& error) {
      close([&] { tell(verbs::handshake::LinkLost{"event", "the adapter is gone"}); });
      reason_ = error.what();
      return open_later();
    }
    if (mad_port_) listen();
  }

  void take(const verbs::MadPort::Incoming& incoming) {
    const verbs::Mad& mad = incoming.mad;
    const auto tid = static_cast<std::uint32_t>(mad.tid());
    if (incoming.timed_out) {
      if (mad.is_subnet_management())
        tell(subnet::SendTimedOut{tid});
      else if (mad.management_class() == verbs::MadClass::subnet_administration)
        tell_administrator(subnet::ReportTimedOut{tid});
      return;
    }
    if (mad.is_subnet_management()) {
      tell(subnet::MadReceived{mad, incoming.source});
      if (mad.method() == verbs::MadMethod::trap)
        tell_administrator(subnet::TrapReceived{verbs::NoticeAttribute(mad.smp_data())});
      return;
    }
    if (mad.management_class() == verbs::MadClass::subnet_administration)
      return tell_administrator(subnet::AdministrationReceived{mad, incoming.source});
    if (mad.management_class() == verbs::MadClass::vendor_handshake && incoming.source.qpn == Qpn{1} &&
        mad.oui() == verbs::MadPort::kOui && mad.method() == verbs::MadMethod::send) {
      const auto message = verbs::handshake::decode(mad.vendor_data());
      if (message) {
        peer_lid_ = incoming.source.lid;
        return tell(verbs::handshake::Received{*message});
      }
    }
    ++nonsense_;
  }

  void on_port_event(ibv_event_type type) {
    if (!mad_port_) return;
    ++port_events_;
    if (type == IBV_EVENT_PORT_ERR) link_lost("event", "the port has lost its link");
    if (type == IBV_EVENT_LID_CHANGE && link_told_) {
      try {
        if (Lid{device_.query_port(configuration_.device_port).lid} != own_lid_)
          link_lost("local", "the port has got another LID");
      } catch (const verbs::VerbsError&) {
        // an adapter that cannot be asked any more will say so through umad
      }
    }
    tell(subnet::PortEvent{type == IBV_EVENT_PORT_ERR});
  }

  // --- subnet manager

  void tell(const subnet::Event& event) {
    if (!manager_) return;
    const auto actions = manager_->handle(now(), event);
    // The connection goes before the Set that would break it.
    if (link_told_ && manager_->view().stage == subnet::Stage::configuring &&
        (manager_->view().planned_own_lid != own_lid_ || manager_->view().planned_peer_lid != peer_lid_))
      link_lost("local", "the cable gets its agreed LIDs");
    for (const auto& action : actions) std::visit([this](const auto& a) { perform(a); }, action);
    tell_administrator(subnet::CableChanged{});
    follow_link();
    arm_manager_timer();
  }

  void perform(const subnet::SendMad& action) {
    if (mad_port_->send(action.mad, action.destination, action.timeout) || action.timeout == 0ms) return;
    // As if nobody had answered: the core asks again, later.
    auto timer = std::make_shared<asio::steady_timer>(descriptor_.get_executor(), action.timeout);
    timer->async_wait([timer, handler = guarded(port_life_, [this, mad = action.mad] {
                                take({.mad = mad, .source = {}, .timed_out = true});
                              })](const boost::system::error_code& error) { handler(error); });
  }

  void perform(const subnet::Notice& notice) {
    last_notice_ = notice.text;
    if (callbacks_.noted) callbacks_.noted(notice.text);
  }

  // --- subnet administrator

  void tell_administrator(const subnet::AdministratorEvent& event) {
    const auto actions = administrator_.handle(now(), manager_->view(), event);
    for (const auto& action : actions) std::visit([this](const auto& a) { perform(a); }, action);
  }

  void perform(const subnet::Answer& answer) { mad_port_->send(answer.bytes, answer.destination); }

  void arm_manager_timer() {
    arm(manager_timer_, manager_due_, manager_->next_timer(), subnet::TimerExpired{});
  }

  // --- from the subnet to the handshake

  void follow_link() {
    const subnet::View& view = manager_->view();
    const bool peer_changed =
        view.peer_lid() != kNoLid && view.peer_lid() != std::exchange(seen_peer_lid_, view.peer_lid());
    if (link_told_) {
      if (!view.active())
        link_lost("event", "the port is not Active any more");
      else if (view.own_lid() != own_lid_ || (peer_changed && view.peer_lid() != peer_lid_))
        link_lost("local", "the cable has got other LIDs");
    }
    // As master, not before all is set: what comes up now should stay.
    const bool settled = view.stage == subnet::Stage::settled;
    if (!link_told_ && settled && view.active()) {
      link_told_ = true;
      own_lid_ = view.own_lid();
      peer_lid_ = view.peer_lid();
      tell(verbs::handshake::LinkActive{view.own.port->neighbor_mtu()});
    }
  }

  void link_lost(const std::string& detector, const std::string& reason) {
    if (!std::exchange(link_told_, false)) return;
    tell(verbs::handshake::LinkLost{detector, reason});
  }

  // --- handshake

  void tell(const verbs::handshake::Event& event) {
    if (!handshake_) return;
    const auto actions = handshake_->handle(now(), event);
    for (const auto& action : actions) std::visit([this](const auto& a) { perform(a); }, action);
    arm(handshake_timer_, handshake_due_, handshake_->next_timer(), verbs::handshake::TimerExpired{});
  }

  void perform(const verbs::handshake::Send& action) {
    verbs::Mad mad(verbs::MadClass::vendor_handshake, verbs::MadMethod::send, 1, 0);
    mad.set_tid(++next_datagram_);
    mad.set_oui(verbs::MadPort::kOui);
    verbs::handshake::encode(action.message, mad.vendor_data());
    mad_port_->send(mad, {.lid = peer_lid_, .qpn = Qpn{1}, .pkey_index = default_pkey_}, 0ms);
  }

  void perform(const verbs::handshake::Open&) {
    try {
      default_pkey_ = find_default_pkey();
      pairs_.emplace(resources_, configuration_.device_port, default_pkey_);
    } catch (const verbs::VerbsError& error) {
      reason_ = error.what();
      return tell(verbs::handshake::Failed{error.what()});
    }
    if (callbacks_.prepare) callbacks_.prepare(pairs_->data(), pairs_->control());
    tell(verbs::handshake::Opened{pairs_->data_address(), pairs_->control_address()});
  }

  void perform(const verbs::handshake::Connect& action) {
    try {
      pairs_->connect(action.peer, peer_lid_, action.mtu);
    } catch (const verbs::VerbsError& error) {
      reason_ = error.what();
      return tell(verbs::handshake::Failed{error.what()});
    }
    mtu_ = action.mtu;
    tell(verbs::handshake::Connected{});
  }

  void perform(const verbs::handshake::Up& action) {
    reason_.clear();
    connected_ = true;
    connected_since_ = now();
    if (callbacks_.up)
      callbacks_.up({action.neighbour, pairs_->data(), pairs_->control(), rate(), verbs::mtu_bytes(mtu_)});
  }

  void perform(const verbs::handshake::Down& action) {
    connected_ = false;
    last_down_ = action.detector + ": " + action.reason;
    if (callbacks_.down) callbacks_.down(action.detector, action.reason);
    pairs_.reset();
  }

  void perform(const verbs::handshake::Met& action) { tell(subnet::NeighbourKnown{action.neighbour.host}); }
  void perform(const verbs::handshake::Refused& action) { reason_ = action.reason; }

  // --- timers

  template <class Event>
  void arm(asio::steady_timer& timer, std::optional<TimePoint>& armed, std::optional<TimePoint> due,
           Event expired) {
    if (armed == due) return;
    armed = due;
    if (!due) {
      timer.cancel();
      return;
    }
    timer.expires_at(std::chrono::steady_clock::time_point(
        std::chrono::duration_cast<std::chrono::steady_clock::duration>(due->time_since_epoch())));
    timer.async_wait(guarded(port_life_, [this, &armed, expired] {
      armed.reset();
      tell(expired);
    }));
  }

  // --- for people

  [[nodiscard]] std::uint16_t find_default_pkey() const {
    for (std::uint16_t index = 0;; ++index) {
      __be16 pkey = 0;
      if (ibv_query_pkey(device_.context(), configuration_.device_port, index, &pkey) != 0) return 0;
      if (pkey == 0xFFFF) return index;
    }
  }

  [[nodiscard]] std::uint64_t rate() const {
    try {
      const auto attributes = device_.query_port(configuration_.device_port);
      return verbs::link_rate(attributes.active_width, attributes.active_speed);
    } catch (const verbs::VerbsError&) {
      return 0;
    }
  }

  [[nodiscard]] std::pair<CablePhase, std::string> phase() const {
    if (!mad_port_) return {CablePhase::no_device, reason_};
    const subnet::View& view = manager_->view();
    if (connected_) return {CablePhase::connected, ""};
    switch (view.stage) {
      case subnet::Stage::stopped:
      case subnet::Stage::down:
        return {CablePhase::down, "No link: nothing is plugged in, or the other end is off."};
      case subnet::Stage::refused:
        return {CablePhase::refused, view.reason};
      case subnet::Stage::discovering:
      case subnet::Stage::electing:
      case subnet::Stage::configuring:
      case subnet::Stage::arming:
      case subnet::Stage::activating:
      case subnet::Stage::backing_off:
        if (!view.active())
          return {CablePhase::configuring,
                  view.reason.empty() ? "The subnet manager configures the cable." : view.reason};
        break;
      case subnet::Stage::settled:
        if (!view.active())
          return {CablePhase::configuring,
                  settings_.manage ? "Waiting for the subnet manager at the other end." : reason_};
        break;
    }
    if (handshake_->state() == verbs::handshake::State::refused) return {CablePhase::refused, reason_};
    if (handshake_->state() == verbs::handshake::State::holding) return {CablePhase::greeting, reason_};
    if (handshake_->unanswered() >= kSilence) {
      const std::string& name = view.peer.description;
      return {CablePhase::greeting,
              "No fabricd answers at the other end" + (name.empty() ? "." : " (\"" + name + "\").")};
    }
    return {CablePhase::greeting, "Agreeing with the neighbour."};
  }

  [[nodiscard]] verbs::CableStatus describe() const {
    verbs::CableStatus status;
    std::tie(status.phase, status.reason) = phase();
    status.device = device_.name();
    status.device_port = configuration_.device_port;
    status.link_layer = "InfiniBand";
    status.state = "Down";
    try {
      const auto attributes = device_.query_port(configuration_.device_port);
      status.state = verbs::to_string(static_cast<verbs::PortState>(attributes.state));
      status.lid = Lid{attributes.lid};
      status.lmc = attributes.lmc;
      status.rate = verbs::link_rate(attributes.active_width, attributes.active_speed);
      status.mtu = verbs::mtu_bytes(static_cast<std::uint8_t>(attributes.active_mtu));
      status.gid = verbs::to_string(device_.query_gid(configuration_.device_port));
      status.port_guid = device_.port_guid(configuration_.device_port);
    } catch (const verbs::VerbsError& error) {
      status.phase = CablePhase::no_device;
      status.reason = error.what();
    }
    if (!mad_port_) return status;
    status.neighbour = handshake_->neighbour();

    const subnet::View& view = manager_->view();
    auto& facts = status.link_layer_facts;
    facts["stage"] = subnet::to_string(view.stage);
    facts["sm_state"] = verbs::to_string(view.state);
    facts["sm_state_for_ms"] = std::to_string((now() - view.state_since) / 1ms);
    if (view.own.port) {
      facts["own_state"] = verbs::to_string(view.own.port->state());
      facts["own_lid"] = std::to_string(view.own_lid().value());
      facts["own_width"] = lanes_text(view.own.port->link_speed());
      facts["own_lane_speed"] = lane_rate_text(view.own.port->link_speed());
      facts["prefix"] = hexadecimal(view.own.port->gid_prefix());
      facts["sm_lid"] = std::to_string(view.own.port->sm_lid().value());
    }
    if (view.own.port && view.own.port->sm_lid() != kNoLid)
      facts["sm"] = view.own.port->sm_lid() == view.own_lid() ? "this end" : "other end";
    if (view.peer.node) {
      facts["peer_node_guid"] = to_string(view.peer.node->node_guid());
      facts["peer_port_guid"] = to_string(view.peer.node->port_guid());
      facts["peer_port"] = std::to_string(view.peer.node->local_port());
      facts["peer_description"] = view.peer.description;
    }
    if (view.peer.port) {
      facts["peer_lid"] = std::to_string(view.peer_lid().value());
      facts["peer_state"] = verbs::to_string(view.peer.port->state());
      facts["peer_width"] = lanes_text(view.peer.port->link_speed());
      facts["peer_lane_speed"] = lane_rate_text(view.peer.port->link_speed());
    }
    if (std::string slow = view.slow_link(); !slow.empty()) facts["slow_link"] = std::move(slow);
    if (view.peer_sm) {
      facts["peer_sm_guid"] = to_string(view.peer_sm->guid());
      facts["peer_sm_state"] = verbs::to_string(view.peer_sm->state());
      facts["peer_sm_priority"] = std::to_string(view.peer_sm->priority());
    }
    if (!last_notice_.empty()) facts["last_notice"] = last_notice_;
    if (!last_down_.empty()) facts["last_down"] = last_down_;

    const auto& manager = view.counters;
    const auto administrator = administrator_.counters();
    const auto& datagrams = mad_port_->counters();
    const auto& hands = handshake_->counters();
    status.counters = {{"sweeps", manager.sweeps},
                       {"smp_requests", manager.requests},
                       {"smp_responses", manager.responses},
                       {"smp_timeouts", manager.timeouts},
                       {"smp_errors", manager.errors},
                       {"smp_ignored", manager.ignored},
                       {"bring_up_requests", view.bring_up_requests},
                       {"elections", manager.elections},
                       {"handovers", manager.handovers},
                       {"traps", manager.traps},
                       {"sa_queries", administrator.queries},
                       {"sa_refused", administrator.refused},
                       {"sa_ignored", administrator.ignored},
                       {"sa_joins", administrator.multicast.joins},
                       {"sa_leaves", administrator.multicast.leaves},
                       {"sa_traps", administrator.traps},
                       {"sa_reports", administrator.subscriptions.reports},
                       {"sa_reports_confirmed", administrator.subscriptions.confirmed},
                       {"sa_reports_unconfirmed", administrator.subscriptions.unconfirmed},
                       {"mads_sent", datagrams.sent},
                       {"mads_received", datagrams.received},
                       {"mads_unsent", datagrams.unsent},
                       {"mads_malformed", datagrams.malformed + nonsense_},
                       {"hellos_sent", hands.sent},
                       {"hellos_received", hands.received},
                       {"hellos_stale", hands.stale},
                       {"handshakes", hands.completed},
                       {"connections_lost", hands.dropped},
                       {"refusals", hands.refused},
                       {"resets", resets_},
                       {"port_events", port_events_}};
    return status;
  }

  void tell_of_changes() {
    if (!callbacks_.changed) return;
    auto present = phase();
    if (present == last_phase_) return;
    last_phase_ = std::move(present);
    callbacks_.changed();
  }

  verbs::Device& device_;
  const InfinibandCableConfiguration configuration_;
  const verbs::CableResources resources_;
  Callbacks callbacks_;
  subnet::Settings settings_;

  const std::shared_ptr<const void> object_life_ = std::make_shared<int>();
  bool started_ = false;
  bool busy_ = false;
  std::deque<std::function<void()>> waiting_;

  // While the port is open.
  std::shared_ptr<const void> port_life_;
  std::optional<verbs::MadPort> mad_port_;
  std::optional<subnet::SubnetManager> manager_;
  subnet::SubnetAdministrator administrator_;
  std::optional<verbs::handshake::Handshake> handshake_;
  std::optional<QueuePairs> pairs_;
  asio::posix::stream_descriptor descriptor_;
  asio::steady_timer manager_timer_, handshake_timer_, reopen_timer_;
  std::optional<TimePoint> manager_due_, handshake_due_;

  bool link_told_ = false;  ///< the handshake knows of the link, which has these LIDs:
  Lid own_lid_, peer_lid_, seen_peer_lid_;
  std::uint16_t default_pkey_ = 0;
  std::uint8_t mtu_ = 0;
  bool connected_ = false;
  TimePoint connected_since_{};
  std::uint64_t next_datagram_ = 0;

  std::string reason_, last_notice_, last_down_;
  std::uint64_t nonsense_ = 0, resets_ = 0, port_events_ = 0;
  std::pair<CablePhase, std::string> last_phase_{CablePhase::no_device, ""};
  mutable verbs::CableStatus status_;
};

}  // namespace

std::unique_ptr<verbs::Cable> make_infiniband_cable(asio::io_context& io, verbs::Device& device,
                                                    InfinibandCableConfiguration configuration,
                                                    verbs::CableResources resources,
                                                    verbs::Cable::Callbacks callbacks) {
  return std::make_unique<InfinibandCable>(io, device, std::move(configuration), resources,
                                           std::move(callbacks));
}

struct DeviceWatch::State : std::enable_shared_from_this<DeviceWatch::State> {
  State(asio::io_context& io, verbs::Device& watched)
      : descriptor(io, watched.event_descriptor()), device(watched) {}

  void listen() {
    descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                          [self = shared_from_this()](const boost::system::error_code& error) {
                            if (error || self->closed) return;
                            self->device.dispatch_events();
                            if (!self->closed) self->listen();
                          });
  }

  asio::posix::stream_descriptor descriptor;
  verbs::Device& device;
  bool closed = false;
};

DeviceWatch::DeviceWatch(asio::io_context& io, verbs::Device& device)
    : state_(std::make_shared<State>(io, device)) {
  state_->listen();
}

DeviceWatch::~DeviceWatch() {
  state_->closed = true;
  state_->descriptor.release();  // the adapter's context owns it
}

}  // namespace fabric::daemon
