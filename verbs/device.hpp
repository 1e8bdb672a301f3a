// One RDMA adapter: its open context, its ports, and its asynchronous events given to whoever serves the
// port.
//
// Without an event loop of its own: the owner watches event_descriptor() for reading and then calls
// dispatch_events(). Single-threaded. A Device outlives everything made on its context.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "verbs/handles.hpp"
#include "words/words.hpp"

namespace fabric::verbs {

class Device {
 public:
  using PortEventHandler = std::function<void(ibv_event_type)>;
  using OtherEventHandler = std::function<void(const ibv_async_event&)>;

  /// Names of all adapters ("mlx5_0"), in the order of their node GUIDs. Empty where there is none, or no
  /// RDMA support at all.
  static std::vector<std::string> names();

  /// Opens the adapter `name`. Throws VerbsError.
  explicit Device(const std::string& name);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] ibv_context* context() const { return context_.get(); }
  [[nodiscard]] Guid node_guid() const { return node_guid_; }
  [[nodiscard]] Guid system_image_guid() const { return system_image_guid_; }
  [[nodiscard]] std::uint8_t port_count() const { return port_count_; }

  /// Kernel driver, from sysfs: "mlx5_core", "rdma_rxe"; empty where the kernel does not know the adapter.
  [[nodiscard]] std::string driver() const;

  /// Throws VerbsError. `port` from 1.
  [[nodiscard]] ibv_port_attr query_port(std::uint8_t port) const;
  [[nodiscard]] ibv_gid query_gid(std::uint8_t port, int index = 0) const;
  /// Interface identifier of GID 0.
  [[nodiscard]] Guid port_guid(std::uint8_t port) const;

  /// One handler per port; an empty one removes it. Events of ports without a handler are dropped.
  void on_port_event(std::uint8_t port, PortEventHandler handler);
  /// Events that belong to no port: queue pairs, completion queues, the adapter itself.
  void on_other_event(OtherEventHandler handler);

  [[nodiscard]] int event_descriptor() const { return context_->async_fd; }
  /// Reads and acknowledges all events there are, and calls the handlers. Never blocks. An adapter that is
  /// gone without a word is an IBV_EVENT_DEVICE_FATAL.
  void dispatch_events();

 private:
  std::string name_;
  Context context_;
  Guid node_guid_, system_image_guid_;
  std::uint8_t port_count_ = 0;
  std::map<std::uint8_t, PortEventHandler> port_handlers_;
  OtherEventHandler other_handler_;
  bool failed_ = false;  ///< and has been said to have
};

/// A GID as IPv6 text.
[[nodiscard]] std::string to_string(const ibv_gid& gid);
/// bit/s of a link with this active width and speed, after line coding, as the specification's table gives it
/// (4x QDR: 32 Gbit/s; 4x HDR: 200 Gbit/s). 0 where unknown.
[[nodiscard]] std::uint64_t link_rate(std::uint8_t active_width, std::uint8_t active_speed);
/// enum ibv_mtu to bytes, 0 where it is none.
[[nodiscard]] std::uint32_t mtu_bytes(std::uint8_t mtu);

}  // namespace fabric::verbs
