// The Ethernet implementation of verbs::Cable (RoCE v2, iWARP): the two ends find each other on the port's
// network interface, then librdmacm connects the two queue pairs. How it works is told in ethernet_cable.cpp
// and docs/ethernet.md.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <memory>

#include "verbs/cable.hpp"
#include "verbs/device.hpp"

namespace fabric::daemon {

struct EthernetCableConfiguration {
  std::uint8_t device_port = 1;  ///< of the adapter, from 1
  verbs::Identity identity;      ///< of this end; `port` is this cable's PortIndex
};

/// `io` and `device` must outlive the cable. The owner of `device` calls its dispatch_events(). Opens nothing
/// before start(); what start() cannot get (kernel module rdma_ucm, the right to use it, a network interface)
/// shows as CablePhase::no_device with a reason, and is tried again.
[[nodiscard]] std::unique_ptr<verbs::Cable> make_ethernet_cable(boost::asio::io_context& io,
                                                                verbs::Device& device,
                                                                EthernetCableConfiguration configuration,
                                                                verbs::CableResources resources,
                                                                verbs::Cable::Callbacks callbacks);

}  // namespace fabric::daemon
