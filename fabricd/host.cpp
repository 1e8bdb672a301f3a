// How the parts of a host are joined.
//
// Everything here runs on the control thread; the only other threads are the forwarder's (data) and one that
// writes the state file, so that a slow disk delays nothing.
//
//   cable       up, down, message                ──▶ feed() ──▶ routing::Node ──▶ perform()
//   perform()   SendMessage                      ──▶ the cable's control channel
//               ResetCable                       ──▶ the cable
//               LidsAgreed                       ──▶ state file, every cable's subnet manager
//               Publish                          ──▶ forwarder, then the kernel's addresses and routes
//               GatewayHeard, ReachabilityChanged ──▶ Gateway
//               Notice                           ──▶ event log
//
//   Gateway     state for the other gateway      ──▶ feed()
//               serves or not; UpstreamWatch     ──▶ originate() ──▶ feed(), where the default route's offer
//               changes
//
// Carrying out an action can lead to the next event (a reset cable is down). Such an event waits in a queue
// until the actions of the one before are done: the node sees one event at a time, and actions keep their
// order.
//
// A connection that fails is given up from the event loop, not from where the failure was noticed: the part
// that noticed is still in the middle of its work, and giving up destroys what it works on.
#include "fabricd/host.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>

#include "fabricd/advice.hpp"
#include "fabricd/forwarder/decision.hpp"
#include "words/text.hpp"

namespace fabric::daemon {

namespace {

constexpr std::uint16_t kNeighbourProtocol = 2;  ///< version of what neighbours say to each other
constexpr std::chrono::milliseconds kFailoverLimit{
    100};  ///< after a fault: new ways are in force, or were already
/// ::/0, and 0.0.0.0/0 as routing::Prefix has it.
constexpr routing::Prefix kDefault6{};
constexpr routing::Prefix kDefault4{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF}, 96};
constexpr std::size_t kMostEarly = 64;  ///< messages kept of a neighbour that was up before this end

TimePoint now() {
  return TimePoint(std::chrono::steady_clock::now().time_since_epoch());
}

std::string machine_name() {
  char name[64] = "";
  gethostname(name, sizeof name - 1);
  const std::string full = printable(std::as_bytes(std::span(name)));
  const std::string first = full.substr(0, full.find('.'));
  return first.empty() ? "host" : first;
}

std::int64_t microseconds(Duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

struct Host::Adapter {
  struct Opened {
    Opened(boost::asio::io_context& io, const std::string& name)
        : device(name), watch(io, device.event_descriptor(), [this] { device.dispatch_events(); }) {}

    verbs::Device device;
    DescriptorWatch watch;
  };

  std::string name;
  std::shared_ptr<Opened> opened;  ///< null while the adapter is gone
  std::uint8_t first = 0;          ///< PortIndex of its port 1; it keeps them when it comes back
  unsigned ports = 0;
  std::string trouble;  ///< that was recorded last, of opening it; empty: none now
};

struct Host::Port {
  PortIndex index;
  std::string name;        ///< "mlx5_0/1"
  std::uint32_t cost = 0;  ///< configured; 0: from the rate
  // Null while the adapter is gone. The channel's completion queue outlives the cable's queue pairs.
  std::unique_ptr<verbs::ControlChannel> channel;
  std::unique_ptr<DescriptorWatch> watch;
  std::unique_ptr<verbs::Cable> cable;

  bool connected = false;
  std::uint64_t times_up = 0;  ///< also tells one connection from the next
  std::chrono::system_clock::time_point since = std::chrono::system_clock::now();
  std::string last_detector, last_reason;
  Lately lost;
  /// While the adapter is gone, and until it is there for the first time: what is left to show.
  verbs::CableStatus last_status;
  verbs::ControlChannel::Counters last_control;
  std::string trouble;  ///< that was recorded last; empty: none now
  /// Received before this end was told that the connection is up.
  std::vector<std::vector<std::byte>> early;

  [[nodiscard]] const verbs::CableStatus& status() const { return cable ? cable->status() : last_status; }
};

// --- Building

Host::Host(boost::asio::io_context& io, boost::asio::thread_pool& disk, const Configuration& configuration,
           const StateDirectory& directory, State state, const std::vector<std::string>& devices,
           Record record)
    : io_(io),
      disk_(disk),
      configuration_(configuration),
      directory_(directory),
      state_(std::move(state)),
      record_(std::move(record)),
      name_(configuration.host.name.empty() ? machine_name() : configuration.host.name),
      timer_(io) {
  open_adapters(devices);
  make_forwarder();
  make_router();
  make_node();
  make_gateway();
  feed(routing::TimerExpired{});
  if (state_.drained) feed(routing::DrainChanged{true});
  for (const auto& adapter : adapters_) make_ports(*adapter);
}

Host::~Host() {
  gateway_.reset();  // says goodbye on the LAN and over the ring, while there is one
  closing_ = true;
  for (const auto& port : ports_) {
    if (port && port->cable) port->cable->stop();
  }
}

void Host::open_adapters(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    adapters_.push_back(std::make_unique<Adapter>());
    adapters_.back()->name = name;
    try {
      open(*adapters_.back());
    } catch (const std::system_error& error) {
      throw std::runtime_error(advise(fmt::format("cannot open adapter {}", name), error));
    }
  }
  guid_ = (*std::min_element(adapters_.begin(), adapters_.end(), [](const auto& a, const auto& b) {
            return a->opened->device.node_guid() < b->opened->device.node_guid();
          }))->opened->device.node_guid();
}

void Host::open(Adapter& adapter) {
  auto opened = std::make_shared<Adapter::Opened>(io_, adapter.name);
  const unsigned ports = opened->device.port_count();
  if (ports > adapter.ports) {  // another one of that name has more ports than there are numbers for
    unsigned used = 0;
    for (const auto& other : adapters_) used = std::max(used, other->first + other->ports);
    if (used + ports > kMaxPorts)
      throw std::system_error(EMFILE, std::generic_category(), fmt::format("more than {} ports", kMaxPorts));
    adapter.first = static_cast<std::uint8_t>(used);
    adapter.ports = ports;
  }
  opened->device.on_other_event([this, &adapter](const ibv_async_event& event) {
    record_(EventLevel::warning, "adapter-event",
            fmt::format("{}: {}", adapter.name, ibv_event_type_str(event.event_type)),
            {{"device", adapter.name}});
    if (event.event_type != IBV_EVENT_DEVICE_FATAL) return;
    // The context is dead, whatever becomes of the adapter: follow_adapters() opens it again.
    boost::asio::post(io_, [weak = std::weak_ptr(self_), &adapter, failed = std::weak_ptr(adapter.opened)] {
      const auto self = weak.lock();
      if (self && !failed.expired()) (*self)->let_go(adapter, "has failed, or was taken out");
    });
  });
  adapter.opened = std::move(opened);
}

void Host::follow_adapters(const std::vector<std::string>& names) {
  for (const auto& adapter : adapters_)
    if (adapter->opened && std::ranges::find(names, adapter->name) == names.end())
      let_go(*adapter, "was taken out, or its driver unloaded");
  for (const std::string& name : names) {
    auto found = std::ranges::find(adapters_, name, [](const auto& adapter) { return adapter->name; });
    if (found == adapters_.end()) {
      adapters_.push_back(std::make_unique<Adapter>());
      adapters_.back()->name = name;
      found = std::prev(adapters_.end());
    }
    Adapter& adapter = **found;
    if (adapter.opened) continue;
    std::string trouble;
    try {
      open(adapter);
      record_(EventLevel::info, "adapter-here", fmt::format("adapter {} is there", name), {{"device", name}});
      make_ports(adapter);
    } catch (const std::system_error& error) {
      trouble = advise(fmt::format("cannot open adapter {}", name), error);
    } catch (const std::runtime_error& error) {
      trouble = error.what();
    }
    if (std::exchange(adapter.trouble, trouble) == trouble || trouble.empty()) continue;
    record_(EventLevel::warning, "adapter-unusable", trouble, {{"device", name}});
  }
}

void Host::let_go(Adapter& adapter, const std::string& reason) {
  record_(EventLevel::warning, "adapter-gone", fmt::format("adapter {} {}", adapter.name, reason),
          {{"device", adapter.name}});
  for (unsigned i = 0; i < adapter.ports && adapter.first + i < ports_.size(); ++i)
    if (const auto& port = ports_[adapter.first + i])
      let_go(*port, fmt::format("The adapter {}. Once it is there again, it is used again.", reason));
  adapter.opened.reset();
}

void Host::let_go(Port& port, const std::string& reason) {
  if (!port.cable) return;
  port.last_status = port.cable->status();
  port.last_status.phase = verbs::CablePhase::no_device;
  port.last_status.reason = reason;
  port.last_status.state = "Down";
  port.last_status.neighbour.reset();
  port.last_control = port.channel->counters();
  // What it still has to say of itself is of no interest.
  auto cable = std::move(port.cable);
  cable->reset("event", "the adapter is gone");
  cable->stop();
  cable.reset();
  port.watch.reset();
  port.channel.reset();
  forwarder_->release(port.index);
}

void Host::make_ports(Adapter& adapter) {
  std::exception_ptr failure;  // of one port; the others are made all the same
  for (std::uint8_t i = 0; i < adapter.opened->device.port_count(); ++i) try {
      make_port(PortIndex(adapter.first + i), adapter.opened->device, i + 1);
    } catch (const std::runtime_error&) {
      failure = std::current_exception();
    }
  if (failure) std::rethrow_exception(failure);
}

void Host::make_forwarder() {
  ForwarderConfiguration settings;
  settings.device = configuration_.network.interface;
  settings.mtu = configuration_.network.mtu;
  settings.ports = 0;
  for (const auto& adapter : adapters_) settings.ports += adapter->ports;
  settings.receive_buffers = configuration_.forwarder.receive_buffers;
  settings.send_buffers = configuration_.forwarder.send_buffers;
  settings.spin = configuration_.forwarder.spin;
  settings.reorder = configuration_.forwarder.reorder;
  settings.pools = {configuration_.network.ipv4, configuration_.network.ipv6};
  settings.incarnation = state_.starts;
  Forwarder::Callbacks callbacks;
  callbacks.suspect = [this](PortIndex port, ibv_wc_status status) {
    give_up(port, "completion", fmt::format("a send failed: {}", ibv_wc_status_str(status)));
  };
  try {
    forwarder_ = std::make_unique<Forwarder>(settings, std::move(callbacks));
  } catch (const std::system_error& error) {
    throw std::runtime_error(
        advise(fmt::format("cannot make the network interface {}", settings.device), error));
  }
  forwarder_watch_ = std::make_unique<DescriptorWatch>(io_, forwarder_->event_descriptor(),
                                                       [this] { forwarder_->dispatch(); });
  kernel_ = std::make_unique<KernelInterface>(forwarder_->device_index(), forwarder_->device_name());
  kernel_->bring_up(configuration_.network.mtu);
}

void Host::make_node() {
  routing::NodeSettings settings;
  settings.guid = guid_;
  settings.name = name_;
  settings.incarnation = state_.starts;
  settings.priority = configuration_.host.priority;
  settings.preferred = HostIndex(configuration_.host.index);
  settings.prefixes = configuration_.network.prefixes;
  settings.multipath = configuration_.routing.multipath;
  settings.timers.keepalive = configuration_.timers.keepalive;
  settings.timers.dead = configuration_.timers.dead;
  const bool kept = !state_.lids.entries.empty();
  node_ = std::make_unique<routing::Node>(settings, kept ? std::optional(state_.lids) : std::nullopt);
}

void Host::set_kernel(const std::string& name, const std::string& value) {
  const std::string problem = kernel_settings_.set(name, value);
  if (problem.empty() ||
      std::find(settings_problems_.begin(), settings_problems_.end(), problem) != settings_problems_.end())
    return;
  settings_problems_.push_back(problem);
  record_(EventLevel::warning, "kernel-refused", problem, {});
}

/// What a host needs so that the kernel passes packets on between the fabric and what is behind this host.
void Host::make_router() {
  const bool gateway = !configuration_.gateway.interface.empty();
  if (!configuration_.network.forwarding || (configuration_.network.prefixes.empty() && !gateway)) return;
  if (gateway) prepare_lan();
  set_kernel("ipv4/ip_forward", "1");
  set_kernel("ipv6/conf/all/forwarding", "1");
  // Packets of the world may come by the other gateway: strict filtering would drop them. The device is ours.
  const std::string device = "ipv4/conf/" + forwarder_->device_name() + "/rp_filter";
  if (KernelSettings::get("ipv4/conf/all/rp_filter") == "1" || KernelSettings::get(device) == "1")
    set_kernel(device, "2");
}

/// Again whenever the default route changes: the interface may have been made only now.
void Host::prepare_lan() {
  if (!configuration_.network.forwarding) return;
  const std::string& lan = configuration_.gateway.interface;
  // A router ignores router advertisements, unless told not to: a default route learned from one would go.
  const std::string advertisements = "ipv6/conf/" + lan + "/accept_ra";
  if (KernelSettings::get(advertisements) == "1") set_kernel(advertisements, "2");
  // Without it, routes by an interface that has no carrier are used as if it had one.
  for (const char* family : {"ipv4", "ipv6"})
    set_kernel(fmt::format("{}/conf/{}/ignore_routes_with_linkdown", family, lan), "1");
}

void Host::make_gateway() {
  const Configuration::Gateway& settings = configuration_.gateway;
  served_ = configuration_.network.prefixes;
  if (settings.interface.empty()) return;
  upstream_ = std::make_unique<UpstreamWatch>(io_, settings.interface, [this] { upstream_changed(); });
  upstream_probe_ = std::make_unique<UpstreamProbe>(io_, settings.interface, settings.probe,
                                                    [this] { upstream_changed(); });
  Gateway::Callbacks callbacks;
  callbacks.changed = [this] { originate(); };
  callbacks.flood = [this](const std::vector<std::byte>& state) {
    feed(routing::GatewayStateChanged{state});
  };
  callbacks.record = record_;
  gateway_ = std::make_unique<Gateway>(io_, settings, guid_, std::move(callbacks));
  upstream_changed();
}

void Host::make_port(PortIndex index, verbs::Device& device, std::uint8_t device_port) {
  const std::string name = fmt::format("{}/{}", device.name(), device_port);
  if (ports_.size() <= index.value()) ports_.resize(index.value() + 1U);
  if (!configuration_.ports.wanted(device.name(), device_port)) {
    if (std::ranges::find(ignored_, name) == ignored_.end()) ignored_.push_back(name);
    return;
  }
  std::unique_ptr<Port>& port = ports_[index.value()];
  if (!port) port = std::make_unique<Port>();
  try {
    port->index = index;
    port->name = name;
    port->cost = configuration_.ports.cost_of(device.name(), device_port);
    verbs::CableResources resources = forwarder_->resources(index, device.context());

    Port* self = port.get();
    verbs::ControlChannel::Callbacks channel;
    channel.received = [this, self](std::span<const std::byte> message) {
      std::vector<std::byte> copy(message.begin(), message.end());
      if (self->connected) {
        feed(routing::MessageReceived{self->index, std::move(copy)});
      } else if (self->early.size() < kMostEarly) {
        self->early.push_back(std::move(copy));
      }
    };
    channel.failed = [this, index](const std::string& detector, const std::string& reason) {
      give_up(index, detector, reason);
    };
    port->channel = std::make_unique<verbs::ControlChannel>(device.context(), resources.pd, channel,
                                                            configuration_.timers.heartbeat);
    port->channel->fill(resources);
    port->watch = std::make_unique<DescriptorWatch>(io_, port->channel->descriptor(), [this, self] {
      self->channel->ready();
      schedule();
    });

    const verbs::Identity identity{guid_, name_, index.value(), state_.starts, kNeighbourProtocol};
    verbs::Cable::Callbacks callbacks;
    callbacks.prepare = [this, self](ibv_qp* data, ibv_qp* control) {
      self->early.clear();
      forwarder_->prepare(self->index, data);
      self->channel->prepare(control);
    };
    callbacks.up = [this, self](const verbs::Connection& connection) { cable_up(*self, connection); };
    callbacks.down = [this, self](const std::string& detector, const std::string& reason) {
      cable_down(*self, detector, reason);
    };
    callbacks.changed = [this, self] { cable_changed(*self); };
    callbacks.noted = [this, self](const std::string& text) {
      record_(EventLevel::info, "cable-subnet", fmt::format("{}: {}", self->name, text),
              {{"port", self->index.value() + 1}});
    };
    // The only place that asks for the link layer.
    if (device.query_port(device_port).link_layer == IBV_LINK_LAYER_ETHERNET) {
      port->cable = make_ethernet_cable(io_, device, {device_port, identity}, resources, callbacks);
    } else {
      const InfinibandCableConfiguration cable{device_port, identity, configuration_.host.priority,
                                               configuration_.subnet.m_key};
      port->cable = make_infiniband_cable(io_, device, cable, resources, callbacks);
    }
    port->cable->set_lids(base_lids(), routing::kLmc);
    port->cable->start();
  } catch (const std::system_error& error) {
    const std::string trouble = advise(fmt::format("cannot use port {}", name), error);
    port->watch.reset();
    port->channel.reset();
    forwarder_->release(index);
    port->last_status = {.phase = verbs::CablePhase::no_device,
                         .reason = trouble,
                         .device = device.name(),
                         .device_port = device_port,
                         .state = "Down"};
    throw std::runtime_error(trouble);
  }
}

// --- Cables

void Host::cable_up(Port& port, const verbs::Connection& connection) {
  port.connected = true;
  ++port.times_up;
  port.since = std::chrono::system_clock::now();
  // To probe a cable much more often than its death takes to show finds nothing sooner; and where the adapter
  // is slow to tell, it is one in software, for which every probe is work.
  port.channel->attach(now(), connection.detection / 4);
  forwarder_->attach(port.index, connection.data, connection.rate);
  const verbs::Identity& neighbour = connection.neighbour;
  record_(EventLevel::info, "cable-up",
          fmt::format("{} is connected to {} port {}, {:.0f} Gbit/s", port.name, neighbour.name,
                      neighbour.port + 1, static_cast<double>(connection.rate) / 1e9),
          {{"port", port.index.value() + 1},
           {"neighbour", neighbour.name},
           {"guid", to_string(neighbour.host)},
           {"rate", connection.rate}});
  feed(routing::CableUp{port.index,
                        {neighbour.host, neighbour.name, neighbour.port, neighbour.incarnation},
                        connection.rate,
                        port.cost});
  for (auto& message : std::exchange(port.early, {})) {
    feed(routing::MessageReceived{port.index, std::move(message)});
  }
}

void Host::cable_down(Port& port, const std::string& detector, const std::string& reason) {
  const TimePoint detected = now();
  const auto detected_at = std::chrono::system_clock::now();
  forwarder_->detach(port.index);
  port.channel->detach();
  port.early.clear();
  if (!std::exchange(port.connected, false) || closing_) return;
  port.since = detected_at;
  const Duration detached = now() - detected;
  const bool fault =
      detector != "local";  // else this end began anew on purpose: agreed LIDs, a neighbour's restart
  if (fault) {
    port.lost.add(detected);
    port.last_detector = detector;
    port.last_reason = reason;
    last_failover_ = Failover{detected_at, port.index, detector, reason, detached, {}};
    failover_began_ = detected;
  }
  record_(fault ? EventLevel::warning : EventLevel::info, "cable-down",
          fmt::format("{} has lost its connection ({}): {}", port.name, detector, reason),
          {{"port", port.index.value() + 1},
           {"detector", detector},
           {"reason", reason},
           {"detached_us", microseconds(detached)}});
  feed(routing::CableDown{port.index, reason});
}

void Host::cable_changed(Port& port) {
  if (!port.cable) return;  // its first word about itself comes from within its making
  const verbs::CableStatus& status = port.cable->status();
  const bool trouble =
      status.phase == verbs::CablePhase::no_device || status.phase == verbs::CablePhase::refused;
  const std::string text = trouble ? status.reason : "";
  if (std::exchange(port.trouble, text) == text || !trouble) return;
  record_(EventLevel::warning, status.phase == verbs::CablePhase::refused ? "cable-refused" : "port-unusable",
          fmt::format("{}: {}", port.name, text), {{"port", port.index.value() + 1}, {"reason", text}});
}

void Host::give_up(PortIndex index, const std::string& detector, const std::string& reason) {
  const std::uint64_t connection = ports_[index.value()]->times_up;
  boost::asio::post(io_, [weak = std::weak_ptr(self_), index, connection, detector, reason] {
    const auto self = weak.lock();
    if (!self) return;
    Port& port = *(*self)->ports_[index.value()];
    if (port.connected && port.cable && port.times_up == connection) port.cable->reset(detector, reason);
  });
}

// --- The routing node

void Host::feed(routing::Event event) {
  events_.push_back(std::move(event));
  if (std::exchange(draining_, true)) return;
  while (!events_.empty()) {
    const routing::Event next = std::move(events_.front());
    events_.pop_front();
    for (const routing::Action& action : node_->handle(now(), next)) {
      std::visit([this](const auto& what) { perform(what); }, action);
    }
  }
  draining_ = false;
  if (gateway_) originate();  // what others offer may have changed
  schedule();
}

void Host::perform(const routing::SendMessage& action) {
  if (const auto& port = ports_[action.port.value()]; port && port->channel)
    port->channel->send(action.message);
}

void Host::perform(const routing::ResetCable& action) {
  if (const auto& port = ports_[action.port.value()]; port && port->cable)
    port->cable->reset("heartbeat", action.reason);
}

void Host::perform(const routing::LidsAgreed& action) {
  state_.lids = action.table;
  save_state();
  const auto lids = base_lids();
  for (const auto& port : ports_) {
    if (port && port->cable) port->cable->set_lids(lids, routing::kLmc);
  }
}

void Host::perform(const routing::Publish& action) {
  forwarder_->publish(action.state);
  const auto began = std::exchange(failover_began_, std::nullopt);
  // What is published long after a fault has another cause: traffic did not use that cable, or others knew
  // first.
  if (began && now() - *began < kFailoverLimit) {
    last_failover_->published = now() - *began;
    record_(EventLevel::info, "rerouted",
            fmt::format("new ways are in force {} us after {} was found dead ({})",
                        microseconds(last_failover_->published), ports_[last_failover_->port.value()]->name,
                        last_failover_->detector),
            {{"port", last_failover_->port.value() + 1},
             {"detector", last_failover_->detector},
             {"published_us", microseconds(last_failover_->published)},
             {"generation", action.state->generation}});
  }
  update_kernel(*action.state);
}

void Host::perform(const routing::GatewayHeard& action) {
  if (gateway_) gateway_->peer_state(action.host, action.state);
}

void Host::perform(const routing::ReachabilityChanged& action) {
  action.reachable ? (void)reachable_.insert(action.host) : (void)reachable_.erase(action.host);
  if (!gateway_) return;
  gateway_->peer_reachable(action.host, action.reachable);
  gateway_->ring_reachable(!reachable_.empty());
}

void Host::perform(const routing::Notice& action) {
  const EventLevel level = [&] {
    switch (action.level) {
      case routing::Notice::Level::info:
        return EventLevel::info;
      case routing::Notice::Level::warning:
        return EventLevel::warning;
      case routing::Notice::Level::error:
        break;
    }
    return EventLevel::error;
  }();
  if (action.kind == "slept") slept_.add(now());
  record_(level, action.kind, action.text, {});
}

void Host::schedule() {
  std::optional<TimePoint> earliest = node_->next_timer();
  for (const auto& port : ports_) {
    const auto tick = port && port->channel ? port->channel->next_tick() : std::nullopt;
    if (tick && (!earliest || *tick < *earliest)) earliest = tick;
  }
  if (earliest == timer_at_) return;
  timer_at_ = earliest;
  if (!earliest) {
    timer_.cancel();
    return;
  }
  timer_.expires_at(std::chrono::steady_clock::time_point(earliest->time_since_epoch()));
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;  // cancelled; nothing of `this` may be touched
    timer_at_.reset();
    timer_expired();
  });
}

void Host::timer_expired() {
  for (const auto& port : ports_) {
    const auto tick = port && port->channel ? port->channel->next_tick() : std::nullopt;
    if (tick && *tick <= now()) port->channel->tick(now());
  }
  const auto due = node_->next_timer();
  if (due && *due <= now()) feed(routing::TimerExpired{});
  schedule();
}

// --- The gateway

const DefaultRoute& Host::default_route(bool ipv4) const {
  return ipv4 ? upstream_->now().ipv4 : upstream_->now().ipv6;
}

bool Host::upstream_answers(bool ipv4) const {
  return upstream_probe_->answers(ipv4);
}

bool Host::offers(const routing::Prefix& prefix) const {
  return std::find(served_.begin(), served_.end(), prefix) != served_.end();
}

bool Host::originates(bool ipv4) const {
  if (!gateway_ || !default_route(ipv4).present || !upstream_answers(ipv4)) return false;
  if (configuration_.gateway.originate_all || gateway_->serves(ipv4)) return true;
  // Who no longer serves goes on offering it until somebody else does: the ring is never without.
  const routing::Prefix& prefix = ipv4 ? kDefault4 : kDefault6;
  return offers(prefix) && std::ranges::none_of(node_->hosts(), [&](const routing::HostView& host) {
           return !host.self && host.reachable && std::ranges::count(host.prefixes, prefix) != 0;
         });
}

void Host::upstream_changed() {
  prepare_lan();
  if (!gateway_) return;
  for (const bool ipv4 : {true, false}) {
    const DefaultRoute& route = default_route(ipv4);
    gateway_->upstream(ipv4, {route.present && upstream_answers(ipv4), route.next_hops});
  }
  originate();
}

void Host::originate() {
  std::vector<routing::Prefix> served = configuration_.network.prefixes;
  for (const bool ipv4 : {true, false}) {
    const routing::Prefix& prefix = ipv4 ? kDefault4 : kDefault6;
    const bool before = offers(prefix);
    const bool configured = std::find(served.begin(), served.end(), prefix) != served.end();
    const bool now = originates(ipv4);
    if (now && !configured) served.push_back(prefix);
    if (now != before && !configured)
      record_(EventLevel::info, now ? "default-offered" : "default-withdrawn",
              fmt::format("this host {} the {} default route to the ring",
                          now ? "offers" : "no longer offers", ipv4 ? "IPv4" : "IPv6"),
              {{"family", ipv4 ? "ipv4" : "ipv6"}});
  }
  if (served == served_) return;
  served_ = served;
  feed(routing::PrefixesChanged{std::move(served)});
}

// --- State and kernel

std::map<Guid, Lid> Host::base_lids() const {
  std::map<Guid, Lid> lids;
  for (const auto& entry : state_.lids.entries) lids[entry.host] = routing::lid_of(entry.index, 0);
  return lids;
}

void Host::save_state() {
  boost::asio::post(disk_, [&io = io_, state = state_, directory = directory_, weak = std::weak_ptr(self_)] {
    std::string problem;
    try {
      directory.save(state);
    } catch (const StateError& error) {
      problem = error.what();
    }
    boost::asio::post(io, [weak, problem] {
      const auto self = weak.lock();
      if (!self || (*self)->state_problem_ == problem) return;
      (*self)->state_problem_ = problem;
      if (!problem.empty()) (*self)->record_(EventLevel::warning, "state-not-saved", problem, {});
    });
  });
}

void Host::update_kernel(const routing::ForwardingState& state) {
  std::set<KernelInterface::Address> addresses;
  for (const routing::Prefix& network : {configuration_.network.ipv4, configuration_.network.ipv6}) {
    if (const auto address = host_address(network, state.self)) addresses.insert({*address, network.length});
  }
  std::map<routing::Prefix, KernelInterface::RouteKind> routes;
  const std::vector<routing::Prefix>& own = configuration_.network.prefixes;
  // What nobody serves now, although a host that is gone did, goes nowhere: with a default route it would go
  // out of the fabric, and with a static route of a router there for all of the fabric's networks come back
  // in.
  for (const routing::HostView& host : node_->hosts()) {
    if (host.self || host.reachable) continue;
    for (const routing::Prefix& prefix : host.prefixes)
      if (prefix != kDefault4 && prefix != kDefault6)
        routes[prefix] = KernelInterface::RouteKind::unreachable;
  }
  for (const routing::Prefix& prefix : own) routes.erase(prefix);
  for (const auto& [prefix, host] : state.prefixes) {
    if (host != state.self)
      routes[prefix] = KernelInterface::RouteKind::fabric;
    else
      routes.erase(prefix);
  }
  std::vector<std::string> problems = kernel_->set_addresses(addresses);
  for (std::string& problem : kernel_->set_routes(routes)) problems.push_back(std::move(problem));
  if (problems == kernel_problems_) return;
  kernel_problems_ = std::move(problems);
  for (const std::string& problem : kernel_problems_) {
    record_(EventLevel::warning, "kernel-refused", problem, {});
  }
}

// --- Steering and inspection

void Host::set_drained(bool drained) {
  if (std::exchange(state_.drained, drained) == drained) return;
  save_state();
  record_(EventLevel::info, drained ? "drained" : "undrained",
          drained ? "others go round this host where they can" : "others go through this host again", {});
  feed(routing::DrainChanged{drained});
}

std::vector<Host::CableOf> Host::cables() const {
  std::vector<CableOf> result;
  for (const auto& port : ports_) {
    if (!port) continue;
    result.push_back({port->index, port->status(),
                      port->channel ? port->channel->counters() : port->last_control, port->times_up,
                      port->since, port->connected, port->last_detector, port->last_reason,
                      port->lost.count(now())});
  }
  return result;
}

unsigned Host::slept_lately() const {
  return slept_.count(now());
}

std::vector<std::string> Host::problems() const {
  std::vector<std::string> problems = kernel_problems_;
  problems.insert(problems.end(), settings_problems_.begin(), settings_problems_.end());
  if (!state_problem_.empty()) problems.push_back(state_problem_);
  for (const auto& port : ports_) {
    if (!port) continue;
    const verbs::CableStatus& status = port->status();
    if (status.phase == verbs::CablePhase::no_device || status.phase == verbs::CablePhase::refused) {
      problems.push_back(fmt::format("{}: {}", port->name, status.reason));
    }
  }
  return problems;
}

}  // namespace fabric::daemon
