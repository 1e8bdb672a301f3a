// The fabric's network interface as the kernel's networking sees it: link, addresses and routes, over
// rtnetlink.
//
// The forwarder makes the TUN device; it goes with the process that holds it, however that ends, and takes
// its addresses and routes along. So there are no leftovers of a killed daemon to look for.
//
// Routes to what other hosts serve carry the routing protocol number kRouteProtocol, by which `ip route show
// proto 88`, FRR and BIRD know them, and the metric kRouteMetric: whatever this host itself knows for the
// same destination is preferred.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "fabricd/addresses.hpp"
#include "fabricd/kernel/netlink.hpp"

namespace fabric::daemon {

inline constexpr std::uint8_t kRouteProtocol = 88;
inline constexpr std::uint32_t kRouteMetric = 8800;

/// A request that the kernel refused: a sentence with what was tried.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class KernelInterface {
 public:
  /// `index` is the interface's number, `name` is for messages. Throws KernelError.
  KernelInterface(unsigned index, std::string name);
  /// Removes the routes and addresses that it has set.
  ~KernelInterface();
  KernelInterface(const KernelInterface&) = delete;
  KernelInterface& operator=(const KernelInterface&) = delete;

  /// Up, with this MTU (bytes) and without an IPv6 link-local address, which nobody could reach. Throws
  /// KernelError.
  void bring_up(unsigned mtu);

  struct Address {
    IpAddress address;
    std::uint8_t length;  ///< bits of the network, as in routing::Prefix
    auto operator<=>(const Address&) const = default;
  };
  /// The addresses to have: adds what is missing, removes what is too many. IPv6 ones are usable at once (no
  /// duplicate address detection; the host index is unique already). Returns what was refused.
  std::vector<std::string> set_addresses(const std::set<Address>& addresses);

  enum class RouteKind : std::uint8_t {
    fabric,       ///< by this interface
    unreachable,  ///< answered with ICMP "unreachable"
  };
  /// The destinations to have routes to. Returns what was refused; it is tried again with the next call.
  std::vector<std::string> set_routes(const std::map<routing::Prefix, RouteKind>& routes);

 private:
  void change_address(const Address& address, bool add);
  using Route = std::pair<routing::Prefix, RouteKind>;
  void change_route(const Route& route, bool add);
  /// The own address for packets to this prefix; null where there is none of its family.
  [[nodiscard]] const Address* source_for(const routing::Prefix& prefix) const;

  unsigned index_;
  std::string name_;
  netlink::Socket socket_;
  std::set<Address> addresses_;
  std::set<Route> routes_;
};

}  // namespace fabric::daemon
