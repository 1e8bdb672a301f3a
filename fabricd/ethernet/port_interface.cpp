// Nothing is cached: a notification only says that it is time to read again, so that a lost one (the kernel
// drops them when a socket's buffer is full, and says so) costs nothing but a reading too many.
#include "fabricd/ethernet/port_interface.hpp"

#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <rdma/rdma_netlink.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "fabricd/watch.hpp"

namespace fabric::daemon {

namespace {

netlink::Socket open_socket(int family) {
  netlink::Socket socket(nl_socket_alloc());
  if (socket && nl_connect(socket.get(), family) < 0) socket.reset();
  return socket;
}

void read_addresses(nl_sock* socket, PortInterface& interface) {
  nl_cache* pointer = nullptr;
  if (rtnl_addr_alloc_cache(socket, &pointer) < 0) return;
  const netlink::Cache cache(pointer);
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* address = reinterpret_cast<rtnl_addr*>(object);
    if (rtnl_addr_get_ifindex(address) != static_cast<int>(interface.index) ||
        rtnl_addr_get_family(address) != AF_INET6 || rtnl_addr_get_scope(address) != RT_SCOPE_LINK) {
      continue;
    }
    const unsigned flags = rtnl_addr_get_flags(address);
    if ((flags & IFA_F_DADFAILED) != 0) {
      interface.duplicate = true;
    } else if ((flags & IFA_F_TENTATIVE) != 0 && (flags & IFA_F_OPTIMISTIC) == 0) {
      interface.tentative = true;
    } else {
      PortInterface::Address bytes{};
      const nl_addr* local = rtnl_addr_get_local(address);
      if (local == nullptr || nl_addr_get_len(local) != bytes.size()) continue;
      std::memcpy(bytes.data(), nl_addr_get_binary_addr(local), bytes.size());
      interface.usable.push_back(bytes);
    }
  }
  std::sort(interface.usable.begin(), interface.usable.end());
}

/// Megabits; the file cannot be read or holds -1 where the driver does not know.
std::uint64_t read_rate(const std::string& name) {
  std::ifstream file("/sys/class/net/" + name + "/speed");
  std::int64_t megabits = 0;
  return file >> megabits && megabits > 0 ? static_cast<std::uint64_t>(megabits) * 1'000'000 : 0;
}

}  // namespace

unsigned interface_of(int device_index, std::uint8_t port) {
  const netlink::Socket socket = open_socket(NETLINK_RDMA);
  const netlink::Message request(
      nlmsg_alloc_simple(RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_PORT_GET), 0));
  if (!socket || !request || device_index < 0) return 0;
  nla_put_u32(request.get(), RDMA_NLDEV_ATTR_DEV_INDEX, static_cast<std::uint32_t>(device_index));
  nla_put_u32(request.get(), RDMA_NLDEV_ATTR_PORT_INDEX, port);
  unsigned index = 0;
  const auto read = [](nl_msg* message, void* result) {
    nlattr* attributes[RDMA_NLDEV_ATTR_NDEV_INDEX + 1] = {};
    if (nlmsg_parse(nlmsg_hdr(message), 0, attributes, RDMA_NLDEV_ATTR_NDEV_INDEX, nullptr) == 0 &&
        attributes[RDMA_NLDEV_ATTR_NDEV_INDEX] != nullptr) {
      *static_cast<unsigned*>(result) = nla_get_u32(attributes[RDMA_NLDEV_ATTR_NDEV_INDEX]);
    }
    return static_cast<int>(NL_OK);
  };
  nl_socket_modify_cb(socket.get(), NL_CB_VALID, NL_CB_CUSTOM, read, &index);
  // The acknowledgement that nl_send_auto() asks for ends the reading, also where there is no answer.
  if (nl_send_auto(socket.get(), request.get()) < 0) return 0;
  nl_wait_for_ack(socket.get());
  return index;
}

std::optional<PortInterface> read_interface(unsigned index) {
  const netlink::Socket socket = open_socket(NETLINK_ROUTE);
  rtnl_link* pointer = nullptr;
  if (!socket || rtnl_link_get_kernel(socket.get(), static_cast<int>(index), nullptr, &pointer) < 0) {
    return std::nullopt;
  }
  const netlink::Link link(pointer);
  PortInterface interface;
  interface.index = index;
  interface.name = rtnl_link_get_name(link.get());
  interface.up = (rtnl_link_get_flags(link.get()) & IFF_UP) != 0;
  interface.carrier = (rtnl_link_get_flags(link.get()) & IFF_LOWER_UP) != 0;
  interface.mtu = rtnl_link_get_mtu(link.get());
  interface.rate = read_rate(interface.name);
  read_addresses(socket.get(), interface);
  return interface;
}

// --- InterfaceWatch

InterfaceWatch::InterfaceWatch(boost::asio::io_context& io, unsigned index, std::function<void()> changed)
    : socket_(nl_socket_alloc()), index_(index) {
  if (!socket_) throw std::runtime_error("no memory for a netlink socket");
  nl_socket_disable_seq_check(socket_.get());
  const auto take = [](nl_msg* message, void* self) {
    auto& watch = *static_cast<InterfaceWatch*>(self);
    const nlmsghdr* header = nlmsg_hdr(message);
    // Both messages have the number at a place of its own behind the header.
    switch (header->nlmsg_type) {
      case RTM_NEWLINK:
      case RTM_DELLINK:
        if (nlmsg_datalen(header) >= static_cast<int>(sizeof(ifinfomsg)))
          watch.concerned_ |=
              static_cast<const ifinfomsg*>(nlmsg_data(header))->ifi_index == static_cast<int>(watch.index_);
        break;
      case RTM_NEWADDR:
      case RTM_DELADDR:
        if (nlmsg_datalen(header) >= static_cast<int>(sizeof(ifaddrmsg)))
          watch.concerned_ |= static_cast<const ifaddrmsg*>(nlmsg_data(header))->ifa_index == watch.index_;
        break;
      default:
        break;
    }
    return static_cast<int>(NL_OK);
  };
  nl_socket_modify_cb(socket_.get(), NL_CB_VALID, NL_CB_CUSTOM, take, this);
  int error = nl_connect(socket_.get(), NETLINK_ROUTE);
  if (error == 0) error = nl_socket_set_nonblocking(socket_.get());
  if (error == 0) error = nl_socket_add_memberships(socket_.get(), RTNLGRP_LINK, RTNLGRP_IPV6_IFADDR, 0);
  if (error < 0) {
    throw std::runtime_error(std::string("cannot watch network interfaces over netlink: ") +
                             nl_geterror(error));
  }
  watch_ = std::make_unique<DescriptorWatch>(io, nl_socket_get_fd(socket_.get()),
                                             [this, changed = std::move(changed)] {
                                               concerned_ = false;
                                               int result = 0;
                                               while ((result = nl_recvmsgs_default(socket_.get())) == 0) {
                                               }
                                               const bool lost = result != -NLE_AGAIN;
                                               if (concerned_ || lost) changed();
                                             });
}

InterfaceWatch::~InterfaceWatch() = default;

}  // namespace fabric::daemon
