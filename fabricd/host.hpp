// One host of the fabric, composed: its adapters, a cable for each of their ports, the forwarder, the routing
// node and the kernel's view of it all. host.cpp tells how they are joined.
#pragma once

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabricd/configuration.hpp"
#include "fabricd/control/event_log.hpp"
#include "fabricd/ethernet/ethernet_cable.hpp"
#include "fabricd/forwarder/forwarder.hpp"
#include "fabricd/gateway/gateway.hpp"
#include "fabricd/kernel/interface.hpp"
#include "fabricd/kernel/settings.hpp"
#include "fabricd/kernel/upstream.hpp"
#include "fabricd/state.hpp"
#include "fabricd/subnet/infiniband_cable.hpp"
#include "fabricd/watch.hpp"
#include "routing/node.hpp"
#include "verbs/cable.hpp"
#include "verbs/control_channel.hpp"
#include "verbs/device.hpp"

namespace fabric::daemon {

/// What a fault cost here: when its cable was given up, and how long each step after that took.
struct Failover {
  std::chrono::system_clock::time_point time;
  PortIndex port;
  std::string detector;                   ///< "event", "completion", "heartbeat", "peer", "local"
  std::string reason;                     ///< a sentence
  std::chrono::nanoseconds detached{0};   ///< detection to the data path having let go and resent
  std::chrono::nanoseconds published{0};  ///< detection to new ways in force; 0: none were needed
};

/// Counts what happened in the last ten minutes, up to a most that is enough to complain about.
class Lately {
 public:
  void add(TimePoint now) {
    if (times_.size() == kMost) times_.pop_front();
    times_.push_back(now);
  }
  [[nodiscard]] unsigned count(TimePoint now) const {
    return static_cast<unsigned>(std::count_if(times_.begin(), times_.end(), [now](TimePoint time) {
      return now - time < std::chrono::minutes(10);
    }));
  }

 private:
  static constexpr std::size_t kMost = 100;
  std::deque<TimePoint> times_;
};

class Host {
 public:
  /// Writes an event into the log and to the journal.
  using Record =
      std::function<void(EventLevel level, std::string kind, std::string text, boost::json::object facts)>;

  /// Opens the adapters, makes the network interface and brings the cables up. `state` is what was kept;
  /// `disk` writes it. Throws std::runtime_error with a sentence that says what to do.
  Host(boost::asio::io_context& io, boost::asio::thread_pool& disk, const Configuration& configuration,
       const StateDirectory& directory, State state, const std::vector<std::string>& devices, Record record);
  /// Tells which adapters the machine has now (verbs::Device::names()): one that is gone is let go of, one
  /// that is new or back is opened, and its cables come up.
  void follow_adapters(const std::vector<std::string>& names);
  /// Says goodbye to the neighbours and removes addresses, routes and the interface.
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  /// @name Inspection, for the control socket
  /// @{
  struct CableOf {
    PortIndex port;
    const verbs::CableStatus& status;
    const verbs::ControlChannel::Counters& control;
    std::uint64_t times_up = 0;
    std::chrono::system_clock::time_point since;  ///< of being connected, or of not being
    bool connected = false;
    std::string last_detector, last_reason;  ///< why it went down last; empty if it never did
    unsigned lost_lately = 0;                ///< times in the last ten minutes
  };
  [[nodiscard]] std::vector<CableOf> cables() const;
  /// Times in the last ten minutes that this host did not run when it should.
  [[nodiscard]] unsigned slept_lately() const;
  [[nodiscard]] const routing::Node& node() const { return *node_; }
  [[nodiscard]] Forwarder& forwarder() { return *forwarder_; }
  [[nodiscard]] const Configuration& configuration() const { return configuration_; }
  [[nodiscard]] const std::optional<Failover>& last_failover() const { return last_failover_; }
  [[nodiscard]] const std::vector<std::string>& ignored_ports() const { return ignored_; }
  /// Null where this host is no gateway.
  [[nodiscard]] Gateway* gateway() { return gateway_.get(); }
  [[nodiscard]] const Gateway* gateway() const { return gateway_.get(); }
  /// Of a gateway: the default route of its own in the kernel, and whether what it leads to answers probes.
  [[nodiscard]] const DefaultRoute& default_route(bool ipv4) const;
  [[nodiscard]] bool upstream_answers(bool ipv4) const;
  /// Whether this host offers its default route to the ring now.
  [[nodiscard]] bool originates(bool ipv4) const;
  [[nodiscard]] bool offers(const routing::Prefix& prefix) const;
  /// Others go round a drained host where they can; it relays what still comes, and can be reached. Kept over
  /// restarts.
  void set_drained(bool drained);
  [[nodiscard]] bool drained() const { return state_.drained; }
  /// What is wrong and stays so until somebody acts: one sentence each.
  [[nodiscard]] std::vector<std::string> problems() const;
  /// @}

 private:
  struct Adapter;
  struct Port;

  // Building
  void open_adapters(const std::vector<std::string>& names);
  void open(Adapter& adapter);
  void make_ports(Adapter& adapter);
  void make_forwarder();
  void make_node();
  void make_router();
  void prepare_lan();
  void set_kernel(const std::string& name, const std::string& value);
  void make_gateway();
  void make_port(PortIndex index, verbs::Device& device, std::uint8_t device_port);
  void let_go(Adapter& adapter, const std::string& reason);
  void let_go(Port& port, const std::string& reason);

  // Cable callbacks
  void cable_up(Port& port, const verbs::Connection& connection);
  void cable_down(Port& port, const std::string& detector, const std::string& reason);
  void cable_changed(Port& port);
  /// Resets the cable from the event loop, unless its connection has changed by then.
  void give_up(PortIndex port, const std::string& detector, const std::string& reason);

  // The routing node
  void feed(routing::Event event);
  void perform(const routing::SendMessage& action);
  void perform(const routing::ResetCable& action);
  void perform(const routing::LidsAgreed& action);
  void perform(const routing::Publish& action);
  void perform(const routing::GatewayHeard& action);
  void perform(const routing::ReachabilityChanged& action);
  void perform(const routing::Notice& action);
  void schedule();
  void timer_expired();

  // The gateway
  void upstream_changed();
  void originate();

  [[nodiscard]] std::map<Guid, Lid> base_lids() const;
  void save_state();
  void update_kernel(const routing::ForwardingState& state);

  boost::asio::io_context& io_;
  boost::asio::thread_pool& disk_;
  const Configuration configuration_;
  const StateDirectory directory_;
  State state_;
  Record record_;
  std::string name_;
  Guid guid_;

  // In the order of their dependence: what is below is destroyed first.
  std::vector<std::unique_ptr<Adapter>> adapters_;  ///< also those that are gone
  std::unique_ptr<Forwarder> forwarder_;
  std::unique_ptr<DescriptorWatch> forwarder_watch_;
  std::unique_ptr<KernelInterface> kernel_;
  KernelSettings kernel_settings_;
  std::unique_ptr<routing::Node> node_;
  std::unique_ptr<UpstreamWatch> upstream_;  ///< the gateway's, like the next two
  std::unique_ptr<UpstreamProbe> upstream_probe_;
  std::unique_ptr<Gateway> gateway_;
  std::set<Guid> reachable_;                  ///< other hosts
  std::vector<routing::Prefix> served_;       ///< as the node was told
  std::vector<std::unique_ptr<Port>> ports_;  ///< by PortIndex; null where the port is ignored
  std::vector<std::string> ignored_;

  boost::asio::steady_timer timer_;
  std::optional<TimePoint> timer_at_;
  std::deque<routing::Event> events_;
  bool draining_ = false;
  std::optional<Failover> last_failover_;
  std::optional<TimePoint> failover_began_;  ///< nothing: none is under way
  std::vector<std::string> kernel_problems_, settings_problems_;
  std::string state_problem_;
  Lately slept_;
  bool closing_ = false;
  /// What is posted to the event loop holds a weak pointer to it, and does nothing when it is gone.
  std::shared_ptr<Host*> self_ = std::make_shared<Host*>(this);
};

}  // namespace fabric::daemon
