// The network interface of an RDMA port, as the kernel's networking sees it: read over rtnetlink, never
// changed.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabricd/kernel/netlink.hpp"

namespace fabric::daemon {

class DescriptorWatch;

struct PortInterface {
  using Address = std::array<std::uint8_t, 16>;  ///< IPv6, network order

  unsigned index = 0;
  std::string name;
  bool up = false;              ///< administratively
  bool carrier = false;         ///< somebody at the other end of the cable
  std::uint32_t mtu = 0;        ///< bytes
  std::uint64_t rate = 0;       ///< bit/s, 0 where the driver does not say
  std::vector<Address> usable;  ///< its link-local addresses
  /// Those that are not, yet (duplicate address detection is under way) or at all (it has found a duplicate).
  bool tentative = false, duplicate = false;
};

/// Number of the network interface of `port` (from 1) of the RDMA device with this kernel index
/// (ibv_get_device_index()), over RDMA netlink; 0 where it has none in this network namespace.
[[nodiscard]] unsigned interface_of(int device_index, std::uint8_t port);

/// What the kernel says now; nothing where there is no such interface (any more).
[[nodiscard]] std::optional<PortInterface> read_interface(unsigned index);

/// Tells of every change of an interface's link or IPv6 addresses; what has changed is for read_interface().
class InterfaceWatch {
 public:
  /// Throws std::runtime_error.
  InterfaceWatch(boost::asio::io_context& io, unsigned index, std::function<void()> changed);
  ~InterfaceWatch();
  InterfaceWatch(const InterfaceWatch&) = delete;
  InterfaceWatch& operator=(const InterfaceWatch&) = delete;

 private:
  netlink::Socket socket_;
  unsigned index_;
  bool concerned_ = false;
  std::unique_ptr<DescriptorWatch> watch_;
};

}  // namespace fabric::daemon
