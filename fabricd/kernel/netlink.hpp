// Owners of libnl's objects.
#pragma once

#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/route.h>

#include <memory>

namespace fabric::daemon::netlink {

template <class T, void (*release)(T*)>
struct Release {
  void operator()(T* object) const noexcept { release(object); }
};
template <class T, void (*release)(T*)>
using Owner = std::unique_ptr<T, Release<T, release>>;

using Socket = Owner<nl_sock, nl_socket_free>;
using Message = Owner<nl_msg, nlmsg_free>;
using Cache = Owner<nl_cache, nl_cache_free>;
using Link = Owner<rtnl_link, rtnl_link_put>;
using Route = Owner<rtnl_route, rtnl_route_put>;
using InterfaceAddress = Owner<rtnl_addr, rtnl_addr_put>;
using Address = Owner<nl_addr, nl_addr_put>;  ///< of any family, a hardware address too

}  // namespace fabric::daemon::netlink
