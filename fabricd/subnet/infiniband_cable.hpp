// The InfiniBand implementation of verbs::Cable: subnet management of both ends, then a handshake over QP1,
// then two reliable connections. How it works is told in infiniband_cable.cpp and docs/subnet.md.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <memory>

#include "verbs/cable.hpp"
#include "verbs/device.hpp"

namespace fabric::daemon {

struct InfinibandCableConfiguration {
  std::uint8_t device_port = 1;  ///< of the adapter, from 1
  verbs::Identity identity;      ///< of this end; `port` is this cable's PortIndex
  /// Of the subnet manager, 0..15; the higher one is master, then the lower port GUID. OpenSM's default is 0.
  std::uint8_t priority = 8;
  /// As master, this end protects both ports with it; 0: no protection.
  std::uint64_t m_key = 0;
};

/// `io` and `device` must outlive the cable. The owner of `device` calls its dispatch_events() (see
/// DeviceWatch). Opens nothing before start(); what start() cannot get (no right to open umad, adapter gone)
/// shows as CablePhase::no_device with a reason, and is tried again.
[[nodiscard]] std::unique_ptr<verbs::Cable> make_infiniband_cable(boost::asio::io_context& io,
                                                                  verbs::Device& device,
                                                                  InfinibandCableConfiguration configuration,
                                                                  verbs::CableResources resources,
                                                                  verbs::Cable::Callbacks callbacks);

/// Watches a device's event descriptor on the control thread and dispatches what comes, as long as it lives.
class DeviceWatch {
 public:
  DeviceWatch(boost::asio::io_context& io, verbs::Device& device);
  ~DeviceWatch();
  DeviceWatch(const DeviceWatch&) = delete;
  DeviceWatch& operator=(const DeviceWatch&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fabric::daemon
