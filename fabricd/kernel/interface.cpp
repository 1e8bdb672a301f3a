#include "fabricd/kernel/interface.hpp"

#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/link/inet6.h>
#include <netlink/route/route.h>
#include <sys/socket.h>

#include <algorithm>

namespace fabric::daemon {

namespace {

using netlink::Link;

/// `length` as in routing::Prefix.
netlink::Address nl_address(const IpAddress& address, unsigned length) {
  const bool ipv4 = is_ipv4(address) && length >= 96;
  netlink::Address result(ipv4 ? nl_addr_build(AF_INET, address.data() + 12, 4)
                               : nl_addr_build(AF_INET6, address.data(), 16));
  nl_addr_set_prefixlen(result.get(), static_cast<int>(ipv4 ? length - 96 : length));
  return result;
}

void check(int result, const std::string& what) {
  if (result < 0) throw KernelError(fmt::format("{}: {}", what, nl_geterror(result)));
}

/// Makes `present` equal to `wanted` with one call of change(element, add) per difference; what it throws is
/// returned, and the element is left as it was.
template <class T, class Change>
std::vector<std::string> reconcile(std::set<T>& present, const std::set<T>& wanted, Change change) {
  std::vector<std::string> refused;
  const auto attempt = [&](const T& element, bool add) {
    try {
      change(element, add);
      return true;
    } catch (const KernelError& error) {
      refused.emplace_back(error.what());
      return false;
    }
  };
  for (auto it = present.begin(); it != present.end();) {
    if (wanted.contains(*it)) {
      ++it;
    } else {
      attempt(*it, false);  // what cannot be removed is gone already
      it = present.erase(it);
    }
  }
  for (const T& element : wanted) {
    if (!present.contains(element) && attempt(element, true)) present.insert(element);
  }
  return refused;
}

}  // namespace

KernelInterface::KernelInterface(unsigned index, std::string name)
    : index_(index), name_(std::move(name)), socket_(nl_socket_alloc()) {
  if (!socket_) throw KernelError("no memory for a netlink socket");
  check(nl_connect(socket_.get(), NETLINK_ROUTE), "cannot open a netlink socket");
}

KernelInterface::~KernelInterface() {
  set_routes({});
  set_addresses({});
}

void KernelInterface::bring_up(unsigned mtu) {
  const Link which(rtnl_link_alloc()), changes(rtnl_link_alloc());
  rtnl_link_set_ifindex(which.get(), static_cast<int>(index_));
  rtnl_link_set_ifindex(changes.get(), static_cast<int>(index_));
  // In a request of its own, and before the link is up: a kernel without IPv6 refuses it, and once up there
  // would be a link-local address already.
  if (rtnl_link_inet6_set_addr_gen_mode(changes.get(), IN6_ADDR_GEN_MODE_NONE) == 0) {
    rtnl_link_change(socket_.get(), which.get(), changes.get(), 0);
  }
  const Link up(rtnl_link_alloc());
  rtnl_link_set_mtu(up.get(), mtu);
  rtnl_link_set_flags(up.get(), IFF_UP);
  check(rtnl_link_change(socket_.get(), which.get(), up.get(), 0),
        fmt::format("cannot bring up {} with an MTU of {}", name_, mtu));
}

std::vector<std::string> KernelInterface::set_addresses(const std::set<Address>& addresses) {
  return reconcile(addresses_, addresses,
                   [this](const Address& address, bool add) { change_address(address, add); });
}

std::vector<std::string> KernelInterface::set_routes(const std::map<routing::Prefix, RouteKind>& routes) {
  return reconcile(routes_, {routes.begin(), routes.end()},
                   [this](const Route& route, bool add) { change_route(route, add); });
}

void KernelInterface::change_address(const Address& address, bool add) {
  const netlink::InterfaceAddress request(rtnl_addr_alloc());
  const netlink::Address local = nl_address(address.address, address.length);
  rtnl_addr_set_ifindex(request.get(), static_cast<int>(index_));
  check(rtnl_addr_set_local(request.get(), local.get()), "cannot set an address");
  if (!is_ipv4(address.address)) rtnl_addr_set_flags(request.get(), IFA_F_NODAD);
  const std::string what = fmt::format("{} address {} {} {}", add ? "cannot add" : "cannot remove",
                                       to_string(address.address), add ? "to" : "from", name_);
  check(add ? rtnl_addr_add(socket_.get(), request.get(), NLM_F_CREATE | NLM_F_REPLACE)
            : rtnl_addr_delete(socket_.get(), request.get(), 0),
        what);
}

const KernelInterface::Address* KernelInterface::source_for(const routing::Prefix& prefix) const {
  const auto found = std::find_if(addresses_.begin(), addresses_.end(), [&](const Address& address) {
    return is_ipv4(address.address) == is_ipv4(prefix);
  });
  return found == addresses_.end() ? nullptr : &*found;
}

void KernelInterface::change_route(const Route& route, bool add) {
  const auto& [prefix, kind] = route;
  const bool ipv4 = is_ipv4(prefix);
  const netlink::Route request(rtnl_route_alloc());
  const netlink::Address destination = nl_address(prefix.address, prefix.length);
  rtnl_route_set_family(request.get(), static_cast<std::uint8_t>(ipv4 ? AF_INET : AF_INET6));
  rtnl_route_set_table(request.get(), RT_TABLE_MAIN);
  const bool leads = kind == RouteKind::fabric;
  rtnl_route_set_type(request.get(), leads ? RTN_UNICAST : RTN_UNREACHABLE);
  rtnl_route_set_scope(request.get(), ipv4 && leads ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE);
  rtnl_route_set_protocol(request.get(), kRouteProtocol);
  rtnl_route_set_priority(request.get(), kRouteMetric);
  check(rtnl_route_set_dst(request.get(), destination.get()), "cannot set a route's destination");
  if (const Address* own = leads ? source_for(prefix) : nullptr) {
    // A host's own address as preferred source: else the kernel may take one that nobody routes back to.
    const netlink::Address source = nl_address(own->address, 128);
    rtnl_route_set_pref_src(request.get(), source.get());
  }
  if (leads) {
    rtnl_nexthop* hop = rtnl_route_nh_alloc();
    if (hop == nullptr) throw KernelError("no memory for a route");
    rtnl_route_nh_set_ifindex(hop, static_cast<int>(index_));
    rtnl_route_add_nexthop(request.get(), hop);
  }
  check(add ? rtnl_route_add(socket_.get(), request.get(), NLM_F_CREATE | NLM_F_REPLACE)
            : rtnl_route_delete(socket_.get(), request.get(), 0),
        fmt::format("cannot {} the route to {} by {}", add ? "add" : "remove", to_string(prefix), name_));
}

}  // namespace fabric::daemon
