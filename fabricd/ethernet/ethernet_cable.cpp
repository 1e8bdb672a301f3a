// An Ethernet cable: what joins the core (greeting.hpp) to the kernel.
//
//   port, interface, addresses  ── events ──▶ refresh() ──▶ Greeting ──▶ announcements, librdmacm, callbacks
//
// Discovery is over UDP on the port's network interface, from IPv6 link-local address to link-local group, so
// that nothing needs to be configured and nothing leaves the cable. The connection is librdmacm's: the kernel
// chooses the GID (RoCE v2 where the port has it) and resolves the neighbour's MAC address; for iWARP it
// makes the TCP connection. It is asked anew for every connection, so a GID that has moved in the table after
// a flap is never used again.
//
// The queue pairs are made here and not by librdmacm: they belong to the protection domain and completion
// queues that the owner gives, on its context of the device, and all their attributes are set in one place.
// librdmacm is told their numbers (rdma_cm(7), "rdma_cm_id without a QP"), which is why the active side gets
// CONNECT_RESPONSE and calls rdma_establish().
//
// Single-threaded, all descriptors non-blocking. Events of any source become events of the core; actions of
// the core are carried out at once, and events that result from them wait in a queue until they are done.
// The one exception is reset(), which the owner expects to be over when it returns; see there.
//
// Specifications: IBA 1.4 volume 1, chapter 12 (communication management) and annexes A16, A17 (RoCE), RFC
// 5040-5044 and 6581 (iWARP), RFC 4291 (addresses), RFC 5082 (hop limit).
#include "fabricd/ethernet/ethernet_cable.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <rdma/rdma_cma.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include "fabricd/advice.hpp"
#include "fabricd/ethernet/announcement_socket.hpp"
#include "fabricd/ethernet/greeting.hpp"
#include "fabricd/ethernet/port_interface.hpp"
#include "fabricd/watch.hpp"
#include "verbs/handles.hpp"

namespace fabric::daemon {

namespace {

using verbs::CablePhase;
using verbs::check;
using verbs::VerbsError;
using Purpose = ConnectionParameters::Purpose;

/// While the port cannot be used: how often to look, besides the events that say so.
constexpr std::chrono::milliseconds kLookAgain{500};
constexpr const char* kConnectionManager = "/dev/infiniband/rdma_cm";
/// Resolving the neighbour's address is one neighbour solicitation.
constexpr int kResolveTimeout = 1000;  // milliseconds

// Of the queue pairs. A dead cable shows after about kRetries + 1 acknowledgement timeouts (IBA 9.7.6.1.3),
// whose length the core decides. Soft-RoCE takes 7 retries as endless.
constexpr std::uint8_t kRetries = 3;
constexpr std::uint8_t kRnrRetries = 7;        // endless: a neighbour that is busy is not dead
constexpr std::uint8_t kMinRnrTimer = 5;       // 60 us: receive queues refill in microseconds
constexpr std::uint8_t kReadsOutstanding = 1;  // none are used; 0 upsets some drivers

TimePoint now() {
  return TimePoint(std::chrono::steady_clock::now().time_since_epoch());
}

using CmId = std::unique_ptr<rdma_cm_id, verbs::Destroyer<rdma_destroy_id>>;
using EventChannel = std::unique_ptr<rdma_event_channel, verbs::Destroyer<rdma_destroy_event_channel>>;

/// For the verbs of librdmacm, which return -1 and set errno.
void check_cm(int result, const char* what) {
  if (result != 0) throw VerbsError(errno, what);
}

CmId make_id(rdma_event_channel* channel) {
  rdma_cm_id* id = nullptr;
  check_cm(rdma_create_id(channel, &id, nullptr, RDMA_PS_TCP), "rdma_create_id");
  return CmId(id);
}

sockaddr_in6 socket_address(const Greeting::Address& address, std::uint16_t service, unsigned scope) {
  sockaddr_in6 result{};
  result.sin6_family = AF_INET6;
  result.sin6_port = htons(service);
  result.sin6_scope_id = scope;
  std::memcpy(&result.sin6_addr, address.data(), address.size());
  return result;
}

std::string to_text(const Greeting::Address& address) {
  ibv_gid gid{};
  std::memcpy(gid.raw, address.data(), address.size());
  return verbs::to_string(gid);
}

std::span<const std::byte> private_data(const rdma_cm_event& event) {
  return std::as_bytes(std::span(static_cast<const std::uint8_t*>(event.param.conn.private_data),
                                 event.param.conn.private_data == nullptr
                                     ? std::size_t{0}
                                     : std::size_t{event.param.conn.private_data_len}));
}

ibv_mtu mtu_code(std::uint32_t bytes) {
  for (const ibv_mtu code : {IBV_MTU_4096, IBV_MTU_2048, IBV_MTU_1024, IBV_MTU_512}) {
    if (bytes >= verbs::mtu_bytes(static_cast<std::uint8_t>(code))) return code;
  }
  return IBV_MTU_256;
}

const char* port_state(ibv_port_state state) {
  constexpr const char* names[] = {"No change", "Down", "Init", "Armed", "Active", "Active (deferred)"};
  return static_cast<std::size_t>(state) < std::size(names) ? names[state] : "unknown";
}

std::string without_connection_manager(const VerbsError& error) {
  switch (error.code().value()) {
    case EACCES:
    case EPERM:
      return fmt::format("fabricd may not open {}: run it as root, or give its user that device",
                         kConnectionManager);
    default:
      return fmt::format("librdmacm cannot be used ({}): is its kernel module loaded? modprobe rdma_ucm",
                         error.code().message());
  }
}

rdma_conn_param connection_parameters(const ibv_qp& qp, std::span<const std::byte> private_data) {
  rdma_conn_param parameters{};
  parameters.private_data = private_data.data();
  parameters.private_data_len = static_cast<std::uint8_t>(private_data.size());
  parameters.responder_resources = parameters.initiator_depth = kReadsOutstanding;
  parameters.retry_count = kRetries;
  parameters.rnr_retry_count = kRnrRetries;
  parameters.qp_num = qp.qp_num;
  return parameters;
}

bool in_software(const verbs::Device& device) {
  const std::string driver = device.driver();
  return driver == "rdma_rxe" || driver == "siw";
}

/// A connection of one queue pair.
struct Leg {
  CmId id;
  verbs::QueuePair qp;
  bool resolved = false;     ///< active: a request can be sent
  bool established = false;  ///< this end can send and receive
};

struct Session {
  Greeting::Session number = 0;
  bool active = false;
  ConnectionParameters parameters;
  Leg legs[2];  ///< by Purpose
  bool prepared = false, up = false;

  Leg& leg(Purpose purpose) { return legs[static_cast<std::size_t>(purpose)]; }
  [[nodiscard]] bool whole() const { return legs[0].established && legs[1].established; }
};

class EthernetCable final : public verbs::Cable {
 public:
  EthernetCable(boost::asio::io_context& io, verbs::Device& device, EthernetCableConfiguration configuration,
                verbs::CableResources resources, Callbacks callbacks)
      : io_(io),
        device_(device),
        configuration_(std::move(configuration)),
        resources_(resources),
        callbacks_(std::move(callbacks)),
        port_name_(fmt::format("{}/{}", device.name(), configuration_.device_port)),
        greeting_(configuration_.identity,
                  in_software(device) ? Greeting::kSoftwareTimeout : Greeting::kAdapterTimeout),
        timer_(io),
        look_timer_(io) {
    status_.device = device.name();
    status_.device_port = configuration_.device_port;
    status_.link_layer = "Ethernet";
    status_.link_layer_facts["driver"] = device.driver();
    status_.link_layer_facts["transport"] = iwarp() ? "iWARP" : "RoCE";
  }
  ~EthernetCable() override { stop(); }

  void start() override;
  void stop() override;
  void reset(const std::string& detector, const std::string& reason) override;
  /// LIDs are InfiniBand's; an Ethernet port has none.
  void set_lids(const std::map<Guid, Lid>&, std::uint8_t) override {}
  [[nodiscard]] const verbs::CableStatus& status() const override { return status_; }

 private:
  // The port
  void refresh();
  Greeting::Event look();
  void open_channel();
  void listen(const PortInterface& interface);
  void look_again_later();

  // The core
  void feed(Greeting::Event event);
  void perform(const Greeting::Announce& action);
  void perform(const Greeting::Connect& action);
  void perform(const Greeting::Establish& action);
  void perform(const Greeting::Accept& action);
  void perform(const Greeting::Reject& action);
  void perform(const Greeting::GiveUp& action);
  void perform(const Greeting::Up& action);
  void schedule();
  void update_status();

  // Connections
  void take_connection_events();
  void on_connection_event(const rdma_cm_event& event);
  void on_request(const rdma_cm_event& event);
  void on_leg_event(Session& session, Purpose purpose, const rdma_cm_event& event);
  void make_queue_pairs(Session& session);
  void request(Session& session);
  void establish_if_whole(Session& session);
  void part_with(Leg leg);
  void to_ready(Leg& leg, const Terms& terms);
  void modify(Leg& leg, ibv_qp_state state, const Terms& terms);
  void show_gid(unsigned index);
  [[nodiscard]] bool ours(const rdma_cm_id* id) const {
    return id->verbs != nullptr && device_.name() == ibv_get_device_name(id->verbs->device) &&
           id->port_num == configuration_.device_port;
  }
  [[nodiscard]] bool iwarp() const {
    return device_.context()->device->transport_type == IBV_TRANSPORT_IWARP;
  }

  boost::asio::io_context& io_;
  verbs::Device& device_;
  const EthernetCableConfiguration configuration_;
  const verbs::CableResources resources_;
  const Callbacks callbacks_;
  const std::string port_name_;
  verbs::CableStatus status_;

  Greeting greeting_;
  std::deque<Greeting::Event> events_;
  bool feeding_ = false;
  bool started_ = false;
  bool usable_ = false;  ///< the port, when it was last looked at
  boost::asio::steady_timer timer_, look_timer_;
  std::optional<TimePoint> timer_at_;

  PortInterface interface_;
  std::unique_ptr<InterfaceWatch> interface_watch_;
  std::unique_ptr<AnnouncementSocket> announcements_;
  std::uint64_t not_announced_ = 0;

  // Destroyed from below: identifiers before their channel.
  EventChannel channel_;
  std::unique_ptr<DescriptorWatch> channel_watch_;
  CmId listener_;
  Greeting::Address address_{};  ///< where the listener is, valid with it
  std::uint16_t service_ = 0;
  std::map<Greeting::Request, CmId> requests_;
  Greeting::Request last_request_ = 0;
  std::unique_ptr<Session> session_;
  std::vector<Leg> parting_;  ///< to be destroyed when the port can be used; see part_with()

  /// What is posted to the event loop holds a weak pointer to it, and does nothing when it is gone.
  std::shared_ptr<EthernetCable*> self_ = std::make_shared<EthernetCable*>(this);
};

void EthernetCable::start() {
  started_ = true;
  device_.on_port_event(configuration_.device_port, [this](ibv_event_type) { refresh(); });
  refresh();
}

void EthernetCable::stop() {
  if (!std::exchange(started_, false)) return;
  device_.on_port_event(configuration_.device_port, {});
  look_timer_.cancel();
  feed(Greeting::Stopped{});
  timer_.cancel();
  announcements_.reset();
  interface_watch_.reset();
  requests_.clear();
  parting_.clear();
  listener_.reset();
  channel_watch_.reset();
  channel_.reset();
  // librdmacm has opened the adapter too, and lets go of one that is gone only when it looks for others. Until
  // then the kernel waits with the adapter's removal.
  const auto present = verbs::Device::names();
  if (std::ranges::find(present, device_.name()) == present.end()) rdma_free_devices(rdma_get_devices(nullptr));
}

void EthernetCable::reset(const std::string& detector, const std::string& reason) {
  if (started_) feed(Greeting::Lost{detector, reason});
}

// --- The port

void EthernetCable::refresh() {
  if (!started_) return;
  Greeting::Event event = look();
  usable_ = std::holds_alternative<Greeting::PortUsable>(event);
  if (usable_)
    parting_.clear();
  else
    look_again_later();
  feed(std::move(event));
}

/// Everything that must be there before anybody can be found, in the order in which it has to be put right.
Greeting::Event EthernetCable::look() {
  const auto unusable = [this](CablePhase phase, std::string reason) {
    // A socket made anew joins its group anew, which an interface without addresses may have forgotten.
    listener_.reset();
    announcements_.reset();
    return Greeting::PortUnusable{phase, "event", std::move(reason)};
  };
  try {
    open_channel();
  } catch (const VerbsError& error) {
    return unusable(CablePhase::no_device, without_connection_manager(error));
  }
  const unsigned index =
      interface_of(ibv_get_device_index(device_.context()->device), configuration_.device_port);
  auto interface = index == 0 ? std::nullopt : read_interface(index);
  if (!interface) {
    interface_watch_.reset();
    interface_ = {};
    return unusable(CablePhase::no_device,
                    fmt::format("{} has no network interface here: it is in another network namespace, or "
                                "its driver is going away",
                                port_name_));
  }
  if (index != interface_.index || !interface_watch_) {
    interface_watch_.reset();
    announcements_.reset();
    interface_watch_ = std::make_unique<InterfaceWatch>(io_, index, [this] { refresh(); });
    interface = read_interface(index).value_or(*interface);  // what changed before it was watched
  }
  interface_ = std::move(*interface);
  const std::string& name = interface_.name;
  status_.state = port_state(IBV_PORT_DOWN);
  if (!interface_.up) {
    return unusable(CablePhase::down, fmt::format("{} is switched off: ip link set {} up", name, name));
  }
  if (!interface_.carrier) {
    return unusable(CablePhase::down,
                    fmt::format("{} has no carrier: nothing is plugged in, or the other end is off", name));
  }
  // Not before: drivers that must guess their rate say so in the kernel's log each time they are asked.
  const ibv_port_attr port = device_.query_port(configuration_.device_port);
  status_.state = port_state(port.state);
  status_.mtu = verbs::mtu_bytes(port.active_mtu);
  status_.rate =
      interface_.rate != 0 ? interface_.rate : verbs::link_rate(port.active_width, port.active_speed);
  if (port.state != IBV_PORT_ACTIVE) {
    return unusable(CablePhase::configuring,
                    fmt::format("{} is up, but {} is not active yet", name, port_name_));
  }
  const auto& addresses = interface_.usable;
  if (addresses.empty()) {
    if (interface_.tentative) {
      return unusable(CablePhase::configuring,
                      fmt::format("the IPv6 link-local address of {} is being checked for duplicates", name));
    }
    if (interface_.duplicate) {
      return unusable(CablePhase::configuring,
                      fmt::format("another host has the IPv6 link-local address of {}, which should follow "
                                  "from its MAC address: are two adapters' MAC addresses the same?",
                                  name));
    }
    return unusable(CablePhase::configuring,
                    fmt::format("{} has no IPv6 link-local address, which neighbours are found by: sysctl "
                                "net.ipv6.conf.{}.disable_ipv6=0 net.ipv6.conf.{}.addr_gen_mode=0, then set "
                                "the interface down and up",
                                name, name, name));
  }
  if (listener_ && std::find(addresses.begin(), addresses.end(), address_) == addresses.end()) {
    boost::asio::post(io_, [weak = std::weak_ptr(self_)] {
      if (const auto self = weak.lock()) (*self)->refresh();
    });
    return unusable(CablePhase::configuring,
                    fmt::format("{} has lost its address {}", name, to_text(address_)));
  }
  try {
    if (!announcements_) {
      announcements_ = std::make_unique<AnnouncementSocket>(
          io_, index, [this](const Greeting::Address& source, std::span<const std::byte> bytes) {
            if (auto announcement = decode_announcement(bytes))
              feed(Greeting::Heard{source, std::move(*announcement)});
          });
    }
    listen(interface_);
  } catch (const std::system_error& error) {
    return unusable(CablePhase::configuring, fmt::format("cannot listen on {}: {}", name, error.what()));
  }
  return Greeting::PortUsable{service_, static_cast<std::uint16_t>(status_.mtu)};
}

void EthernetCable::open_channel() {
  if (channel_) return;
  // Where the device may not be opened, the library waits for udev to make another one: 5 seconds each time.
  if (::faccessat(AT_FDCWD, kConnectionManager, R_OK | W_OK, AT_EACCESS) != 0 && errno == EACCES)
    throw VerbsError(EACCES, kConnectionManager);
  errno = ENODEV;  // where the library itself gives none
  channel_.reset(verbs::checked(rdma_create_event_channel(), "rdma_create_event_channel"));
  verbs::set_nonblocking(channel_->fd);
  channel_watch_ = std::make_unique<DescriptorWatch>(io_, channel_->fd, [this] { take_connection_events(); });
}

void EthernetCable::listen(const PortInterface& interface) {
  if (listener_) return;
  CmId id = make_id(channel_.get());
  sockaddr_in6 address = socket_address(interface.usable.front(), 0, interface.index);
  check_cm(rdma_bind_addr(id.get(), reinterpret_cast<sockaddr*>(&address)), "rdma_bind_addr");
  if (!ours(id.get())) throw VerbsError(EADDRNOTAVAIL, "another RDMA device has its address");
  check_cm(rdma_listen(id.get(), 4), "rdma_listen");
  address_ = interface.usable.front();
  status_.gid = to_text(address_);
  std::uint64_t identifier = 0;
  std::memcpy(&identifier, address_.data() + 8, sizeof identifier);
  status_.port_guid = Guid{be64toh(identifier)};
  service_ = ntohs(rdma_get_src_port(id.get()));
  listener_ = std::move(id);
}

void EthernetCable::look_again_later() {
  look_timer_.expires_after(kLookAgain);
  look_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) refresh();
  });
}

// --- The core

void EthernetCable::feed(Greeting::Event event) {
  events_.push_back(std::move(event));
  if (feeding_) return;
  feeding_ = true;
  while (!events_.empty()) {
    const Greeting::Event next = std::move(events_.front());
    events_.pop_front();
    for (const Greeting::Action& action : greeting_.handle(now(), next))
      std::visit([this](const auto& a) { perform(a); }, action);
  }
  feeding_ = false;
  schedule();
  update_status();
}

void EthernetCable::perform(const Greeting::Announce& action) {
  if (announcements_ && announcements_->send(address_, encode(action.announcement)) != 0) ++not_announced_;
}

void EthernetCable::perform(const Greeting::Connect& action) {
  session_ = std::make_unique<Session>();
  session_->number = action.session;
  session_->active = true;
  session_->parameters = action.parameters;
  try {
    sockaddr_in6 from = socket_address(address_, 0, interface_.index);
    sockaddr_in6 to = socket_address(action.address, action.service, interface_.index);
    for (Leg& leg : session_->legs) {
      leg.id = make_id(channel_.get());
      check_cm(rdma_resolve_addr(leg.id.get(), reinterpret_cast<sockaddr*>(&from),
                                 reinterpret_cast<sockaddr*>(&to), kResolveTimeout),
               "rdma_resolve_addr");
    }
  } catch (const VerbsError& error) {
    feed(Greeting::Failed{action.session, error.what()});
  }
}

void EthernetCable::perform(const Greeting::Establish& action) {
  if (!session_ || session_->number != action.session) return;
  try {
    for (Leg& leg : session_->legs) {
      // On iWARP the queue pair is in RTS by now: the stream's own negotiation has moved it there.
      if (!iwarp()) {
        to_ready(leg, action.terms);
        check_cm(rdma_establish(leg.id.get()), "rdma_establish");
      }
      leg.established = true;
    }
  } catch (const VerbsError& error) {
    return feed(Greeting::Failed{action.session, error.what()});
  }
  establish_if_whole(*session_);
}

void EthernetCable::perform(const Greeting::Accept& action) {
  session_ = std::make_unique<Session>();
  session_->number = action.session;
  session_->parameters = action.parameters;
  session_->leg(Purpose::data).id = std::move(requests_[action.data]);
  session_->leg(Purpose::control).id = std::move(requests_[action.control]);
  requests_.erase(action.data);
  requests_.erase(action.control);
  try {
    make_queue_pairs(*session_);
    for (const Purpose purpose : {Purpose::data, Purpose::control}) {
      Leg& leg = session_->leg(purpose);
      to_ready(leg, action.terms);
      ConnectionParameters reply = action.parameters;
      reply.purpose = purpose;
      const auto bytes = encode(reply);
      rdma_conn_param parameters = connection_parameters(*leg.qp, bytes);
      check_cm(rdma_accept(leg.id.get(), &parameters), "rdma_accept");
    }
  } catch (const VerbsError& error) {
    feed(Greeting::Failed{action.session, error.what()});
  }
}

void EthernetCable::perform(const Greeting::Reject& action) {
  const auto found = requests_.find(action.request);
  if (found == requests_.end()) return;
  const auto bytes = encode(action.rejection);
  if (usable_) rdma_reject(found->second.get(), bytes.data(), static_cast<std::uint8_t>(bytes.size()));
  part_with({std::move(found->second)});
  requests_.erase(found);
}

void EthernetCable::perform(const Greeting::GiveUp& action) {
  if (!session_ || session_->number != action.session) return;
  const std::unique_ptr<Session> session = std::move(session_);
  if (session->prepared) callbacks_.down(action.detector, action.reason);
  for (Leg& leg : session->legs) {
    // The neighbour learns of it by this message; where none can get through, by its own means.
    if (usable_ && leg.id && leg.qp) rdma_disconnect(leg.id.get());
    part_with(std::move(leg));
  }
}

/// Destroys a connection: not before the port can be used, because of what Soft-RoCE does (Linux 6.1).
/// - With the identifier's destruction the kernel says goodbye to the other end. A message of the connection
///   manager that cannot be sent, its interface being down or without its address, leaves queue pair 1 in an
///   error state from which it recovers for sending only: the port takes no connection until the device is
///   made anew.
/// - The queue pair's destruction waits until none of its packets is left on this host. Where the link is
///   down, they wait three seconds for the neighbour's MAC address; the control thread would wait with them.
void EthernetCable::part_with(Leg leg) {
  if (!usable_ && started_) parting_.push_back(std::move(leg));
}

void EthernetCable::perform(const Greeting::Up& action) {
  if (!session_) return;
  session_->up = true;
  verbs::Connection connection;
  connection.neighbour = action.neighbour;
  connection.data = session_->leg(Purpose::data).qp.get();
  connection.control = session_->leg(Purpose::control).qp.get();
  connection.rate = status_.rate;
  connection.path_mtu = action.terms.path_mtu;
  connection.detection = Duration(4096) * (1U << action.terms.ack_timeout) * (kRetries + 1);
  status_.link_layer_facts["path_mtu"] = std::to_string(action.terms.path_mtu);
  // TCP has no acknowledgement timeout that anybody could set.
  if (!iwarp()) {
    status_.link_layer_facts["detection_ms"] =
        std::to_string(connection.detection / std::chrono::milliseconds(1));
  }
  update_status();
  callbacks_.up(connection);
}

void EthernetCable::schedule() {
  const auto next = started_ ? greeting_.next_timer() : std::nullopt;
  if (next == timer_at_) return;
  timer_at_ = next;
  if (!next) {
    timer_.cancel();
    return;
  }
  timer_.expires_at(std::chrono::steady_clock::time_point(next->time_since_epoch()));
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;  // cancelled; nothing of `this` may be touched
    timer_at_.reset();
    feed(Greeting::TimerExpired{});
  });
}

void EthernetCable::update_status() {
  const CablePhase phase = greeting_.phase();
  std::string reason = greeting_.reason();
  const bool changed = phase != status_.phase || reason != status_.reason;
  status_.phase = phase;
  status_.reason = std::move(reason);
  status_.neighbour = greeting_.neighbour();

  auto& facts = status_.link_layer_facts;
  facts["interface"] = interface_.name;
  facts["interface_mtu"] = std::to_string(interface_.mtu);
  facts["address"] = listener_ ? to_text(address_) : "none";

  const Greeting::Counters& greeting = greeting_.counters();
  status_.counters = {{"announcements_sent", greeting.announcements_sent},
                      {"announcements_received", greeting.announcements_received},
                      {"announcements_not_sent", not_announced_},
                      {"announcements_dropped", announcements_ ? announcements_->dropped() : 0},
                      {"attempts", greeting.attempts},
                      {"requests", greeting.requests},
                      {"rejections_sent", greeting.rejections_sent},
                      {"connections", greeting.connections},
                      {"given_up", greeting.given_up},
                      {"false_alarms", greeting.false_alarms}};
  if (changed && started_) callbacks_.changed();
}

// --- Connections

void EthernetCable::take_connection_events() {
  rdma_cm_event* pointer = nullptr;
  while (channel_ && rdma_get_cm_event(channel_.get(), &pointer) == 0) {
    // Copied and acknowledged before anybody acts on it: rdma_destroy_id() waits for events of its
    // identifier.
    rdma_cm_event event = *pointer;
    const auto data = private_data(event);
    const std::vector<std::byte> copy(data.begin(), data.end());
    rdma_ack_cm_event(pointer);
    event.param.conn.private_data = copy.data();
    on_connection_event(event);
  }
}

void EthernetCable::on_connection_event(const rdma_cm_event& event) {
  if (event.event == RDMA_CM_EVENT_CONNECT_REQUEST) return on_request(event);
  if (event.event == RDMA_CM_EVENT_DEVICE_REMOVAL) {
    // Whatever was made on the adapter must go before it can.
    feed(Greeting::PortUnusable{CablePhase::no_device, "event",
                                fmt::format("{} is being removed", port_name_)});
    requests_.clear();
    parting_.clear();
    listener_.reset();
    announcements_.reset();
    return look_again_later();
  }
  if (session_) {
    for (const Purpose purpose : {Purpose::data, Purpose::control}) {
      if (session_->leg(purpose).id.get() == event.id) return on_leg_event(*session_, purpose, event);
    }
  }
  for (auto request = requests_.begin(); request != requests_.end(); ++request) {
    if (request->second.get() != event.id) continue;
    const Greeting::Request number = request->first;
    requests_.erase(request);
    return feed(Greeting::RequestGone{number});
  }
  if (listener_ && event.id == listener_.get()) refresh();  // its address has moved to another device
}

void EthernetCable::on_request(const rdma_cm_event& event) {
  const Greeting::Request number = ++last_request_;
  requests_[number] = CmId(event.id);
  const auto parameters = decode_parameters(private_data(event));
  if (!parameters || !ours(event.id)) {
    return perform(Greeting::Reject{
        number,
        {configuration_.identity.version, "only a fabricd of the same message format may connect here"}});
  }
  feed(Greeting::Requested{number, *parameters});
}

void EthernetCable::on_leg_event(Session& session, Purpose purpose, const rdma_cm_event& event) {
  Leg& leg = session.leg(purpose);
  const auto failed = [&](std::string reason) { feed(Greeting::Failed{session.number, std::move(reason)}); };
  switch (event.event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      if (!ours(leg.id.get())) return failed("the way to the neighbour is over another RDMA device");
      if (rdma_resolve_route(leg.id.get(), kResolveTimeout) != 0) failed("rdma_resolve_route failed");
      return;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      leg.resolved = true;
      if (!session.legs[0].resolved || !session.legs[1].resolved) return;
      try {
        request(session);
      } catch (const VerbsError& error) {
        failed(error.what());
      }
      return;
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
    case RDMA_CM_EVENT_ESTABLISHED: {
      if (!session.active) {
        leg.established = true;
        return establish_if_whole(session);
      }
      const auto reply = decode_parameters(private_data(event));
      if (!reply || reply->purpose != purpose)
        return failed("the answer to the connection request is no fabricd's");
      return feed(Greeting::Replied{session.number, *reply});
    }
    case RDMA_CM_EVENT_REJECTED: {
      const auto rejection = decode_rejection(private_data(event));
      return failed(
          rejection ? fmt::format("the other end rejects the connection: {}", rejection->reason)
                    : fmt::format("nobody takes the connection at the other end (status {})", event.status));
    }
    case RDMA_CM_EVENT_DISCONNECTED:
      if (!session.up) return failed("the other end has given up");
      return feed(Greeting::Lost{"peer", "the other end has closed the connection"});
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      return failed(
          fmt::format("{} ({})", rdma_event_str(event.event),
                      event.status < 0 ? std::strerror(-event.status) : std::to_string(event.status)));
    case RDMA_CM_EVENT_CONNECT_REQUEST:
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
    case RDMA_CM_EVENT_MULTICAST_JOIN:
    case RDMA_CM_EVENT_MULTICAST_ERROR:
    case RDMA_CM_EVENT_ADDR_CHANGE:
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
      return;
  }
}

/// For people. The table is read anew: a GID moves in it when its interface or address comes and goes.
void EthernetCable::show_gid(unsigned index) {
  ibv_gid_entry entry{};
  if (ibv_query_gid_ex(device_.context(), configuration_.device_port, index, &entry, 0) != 0) return;
  status_.gid = verbs::to_string(entry.gid);
  auto& facts = status_.link_layer_facts;
  facts["gid_index"] = std::to_string(index);
  switch (entry.gid_type) {
    case IBV_GID_TYPE_ROCE_V2:
      facts["gid_type"] = "RoCE v2";
      break;
    case IBV_GID_TYPE_ROCE_V1:
      facts["gid_type"] = "RoCE v1";
      break;
    default:
      facts.erase("gid_type");
  }
}

/// Both queue pairs, in INIT, with receive buffers.
void EthernetCable::make_queue_pairs(Session& session) {
  for (const Purpose purpose : {Purpose::data, Purpose::control}) {
    const bool data = purpose == Purpose::data;
    ibv_qp_init_attr attributes{};
    attributes.send_cq = attributes.recv_cq = data ? resources_.data_cq : resources_.control_cq;
    attributes.cap = data ? resources_.data_cap : resources_.control_cap;
    attributes.qp_type = IBV_QPT_RC;
    Leg& leg = session.leg(purpose);
    leg.qp.reset(verbs::checked(ibv_create_qp(resources_.pd, &attributes), "ibv_create_qp on " + port_name_));
    modify(leg, IBV_QPS_INIT, {});
  }
  session.prepared = true;
  callbacks_.prepare(session.leg(Purpose::data).qp.get(), session.leg(Purpose::control).qp.get());
}

void EthernetCable::request(Session& session) {
  make_queue_pairs(session);
  for (const Purpose purpose : {Purpose::data, Purpose::control}) {
    Leg& leg = session.leg(purpose);
    ConnectionParameters wish = session.parameters;
    wish.purpose = purpose;
    const auto bytes = encode(wish);
    rdma_conn_param parameters = connection_parameters(*leg.qp, bytes);
    check_cm(rdma_connect(leg.id.get(), &parameters), "rdma_connect");
  }
}

void EthernetCable::establish_if_whole(Session& session) {
  if (session.whole()) feed(Greeting::Connected{session.number});
}

void EthernetCable::to_ready(Leg& leg, const Terms& terms) {
  modify(leg, IBV_QPS_RTR, terms);
  modify(leg, IBV_QPS_RTS, terms);
}

/// The kernel gives what belongs to the connection (GID index, addresses, packet sequence numbers); what is a
/// matter of policy is set here.
void EthernetCable::modify(Leg& leg, ibv_qp_state state, const Terms& terms) {
  ibv_qp_attr attributes{};
  attributes.qp_state = state;
  int mask = 0;
  check_cm(rdma_init_qp_attr(leg.id.get(), &attributes, &mask), "rdma_init_qp_attr");
  // The heartbeat is a zero-length RDMA WRITE.
  if ((mask & IBV_QP_ACCESS_FLAGS) != 0) attributes.qp_access_flags |= IBV_ACCESS_REMOTE_WRITE;
  if ((mask & IBV_QP_PATH_MTU) != 0) attributes.path_mtu = mtu_code(terms.path_mtu);
  if ((mask & IBV_QP_MIN_RNR_TIMER) != 0) attributes.min_rnr_timer = kMinRnrTimer;
  if ((mask & IBV_QP_TIMEOUT) != 0) attributes.timeout = terms.ack_timeout;
  if ((mask & IBV_QP_RETRY_CNT) != 0) attributes.retry_cnt = kRetries;
  if ((mask & IBV_QP_RNR_RETRY) != 0) attributes.rnr_retry = kRnrRetries;
  check(ibv_modify_qp(leg.qp.get(), &attributes, mask), "ibv_modify_qp on " + port_name_);
  if ((mask & IBV_QP_AV) != 0 && attributes.ah_attr.is_global != 0) {
    show_gid(attributes.ah_attr.grh.sgid_index);
  }
}

}  // namespace

std::unique_ptr<verbs::Cable> make_ethernet_cable(boost::asio::io_context& io, verbs::Device& device,
                                                  EthernetCableConfiguration configuration,
                                                  verbs::CableResources resources,
                                                  verbs::Cable::Callbacks callbacks) {
  return std::make_unique<EthernetCable>(io, device, std::move(configuration), resources,
                                         std::move(callbacks));
}

}  // namespace fabric::daemon
