// Sent is through a packet socket, whole frames, because VRRP's source is the virtual MAC address (RFC 9568,
// 7.3) with the interface's own IP address. Received is through raw IP sockets that are bound to the
// interface and have joined the group; the kernel gives TTL and hop limit along.
//
// Netlink only says that something has changed; what is so now is looked up each time. So a message that is
// lost in a burst costs nothing but the next one.
#include "fabricd/gateway/lan_port.hpp"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/icmpv6.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "fabricd/addresses.hpp"

namespace fabric::daemon {

namespace {

using routing::IpAddress;

constexpr int kProtocolVrrp = 112;
constexpr std::size_t kMostRead = 4608;   ///< bytes; more than 255 IPv6 addresses and an IPv4 header
constexpr unsigned kMostReadAtOnce = 64;  ///< packets; a flood must not keep the control thread

int make_socket(int domain, int type, int protocol) {
  const int descriptor = socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
  if (descriptor < 0)
    throw std::system_error(errno, std::generic_category(), "cannot make a socket for VRRP");
  return descriptor;
}

template <class T>
void set_option(int descriptor, int level, int option, const T& value) {
  if (setsockopt(descriptor, level, option, &value, sizeof value) != 0) {
    throw std::system_error(errno, std::generic_category(), "setsockopt of a socket for VRRP");
  }
}

void bind_packet_socket(int descriptor, unsigned index, int protocol) {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(static_cast<std::uint16_t>(protocol));
  address.sll_ifindex = static_cast<int>(index);
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::system_error(errno, std::generic_category(), "bind of a packet socket");
  }
}

IpAddress from_ipv4(const in_addr& address) {
  IpAddress result{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
  std::memcpy(result.data() + 12, &address, 4);
  return result;
}
IpAddress from_ipv6(const in6_addr& address) {
  IpAddress result;
  std::memcpy(result.data(), &address, 16);
  return result;
}

template <class T>
T value_of(const cmsghdr* header) {
  T value;
  std::memcpy(&value, CMSG_DATA(header), sizeof value);
  return value;
}

}  // namespace

void LanPort::Socket::close() {
  watch.reset();
  if (descriptor >= 0) ::close(descriptor);
  descriptor = -1;
}

LanPort::LanPort(boost::asio::io_context& io, std::string name, std::vector<IpAddress> ignore,
                 Callbacks callbacks)
    : io_(io), name_(std::move(name)), ignore_(std::move(ignore)), callbacks_(std::move(callbacks)) {
  netlink_.descriptor = make_socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  sockaddr_nl groups{};
  groups.nl_family = AF_NETLINK;
  groups.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
  if (bind(netlink_.descriptor, reinterpret_cast<const sockaddr*>(&groups), sizeof groups) != 0) {
    throw std::system_error(errno, std::generic_category(), "cannot listen to changes of interfaces");
  }
  netlink_.watch = std::make_unique<DescriptorWatch>(io_, netlink_.descriptor, [this] {
    char buffer[16384];
    while (recv(netlink_.descriptor, buffer, sizeof buffer, 0) > 0 || errno == ENOBUFS) {
    }
    if (refresh() && callbacks_.changed) callbacks_.changed();
  });
  refresh();
}

LanPort::~LanPort() = default;

bool LanPort::refresh() {
  State now;
  now.index = if_nametoindex(name_.c_str());
  ifreq request{};
  name_.copy(request.ifr_name, sizeof request.ifr_name - 1);
  const int any = make_socket(AF_INET, SOCK_DGRAM, 0);
  if (now.index != 0 && ioctl(any, SIOCGIFFLAGS, &request) == 0) {
    now.up = (request.ifr_flags & IFF_UP) != 0 && (request.ifr_flags & IFF_RUNNING) != 0;
  }
  if (now.index != 0 && ioctl(any, SIOCGIFHWADDR, &request) == 0) {
    std::memcpy(now.mac.data(), request.ifr_hwaddr.sa_data, now.mac.size());
  }
  close(any);
  ifaddrs* list = nullptr;
  if (now.index != 0 && getifaddrs(&list) == 0) {
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || name_ != entry->ifa_name) continue;
      if (entry->ifa_addr->sa_family == AF_INET && now.primary4 == IpAddress{}) {
        const auto found = from_ipv4(reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr);
        if (std::find(ignore_.begin(), ignore_.end(), found) == ignore_.end()) now.primary4 = found;
      } else if (entry->ifa_addr->sa_family == AF_INET6 && now.primary6 == IpAddress{}) {
        const auto& address = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
        if (IN6_IS_ADDR_LINKLOCAL(&address)) now.primary6 = from_ipv6(address);
      }
    }
    freeifaddrs(list);
  }
  if (now == state_) return false;
  const bool other = now.index != state_.index;
  state_ = now;
  if (other) {
    detach();
    if (state_.index != 0) attach();
  }
  return true;
}

void LanPort::attach() {
  const int yes = 1;
  vrrp4_.descriptor = make_socket(AF_INET, SOCK_RAW, kProtocolVrrp);
  set_option(vrrp4_.descriptor, IPPROTO_IP, IP_RECVTTL, yes);
  set_option(vrrp4_.descriptor, IPPROTO_IP, IP_PKTINFO, yes);
  ip_mreqn group4{};
  std::memcpy(&group4.imr_multiaddr, vrrp_group(true).data() + 12, 4);
  group4.imr_ifindex = static_cast<int>(state_.index);
  set_option(vrrp4_.descriptor, IPPROTO_IP, IP_ADD_MEMBERSHIP, group4);

  sender_.descriptor = make_socket(AF_PACKET, SOCK_RAW, 0);  // protocol 0: it receives nothing
  arp_.descriptor = make_socket(AF_PACKET, SOCK_DGRAM, 0);
  bind_packet_socket(arp_.descriptor, state_.index, ETH_P_ARP);

  vrrp6_.descriptor = socket(AF_INET6, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, kProtocolVrrp);
  if (vrrp6_.descriptor >= 0) {  // a kernel without IPv6 has none
    set_option(vrrp6_.descriptor, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, yes);
    set_option(vrrp6_.descriptor, IPPROTO_IPV6, IPV6_RECVPKTINFO, yes);
    ipv6_mreq group6{};
    std::memcpy(&group6.ipv6mr_multiaddr, vrrp_group(false).data(), 16);
    group6.ipv6mr_interface = state_.index;
    set_option(vrrp6_.descriptor, IPPROTO_IPV6, IPV6_JOIN_GROUP, group6);
    icmpv6_.descriptor = make_socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
    icmp6_filter filter;
    std::memset(&filter, 0xFF, sizeof filter);
    filter.data[136 / 32] &= ~(1u << (136 % 32));  // neighbour advertisements only
    set_option(icmpv6_.descriptor, IPPROTO_ICMPV6, ICMPV6_FILTER, filter);
  }
  const auto watch = [&](Socket& socket, std::function<void()> read) {
    if (socket.descriptor < 0) return;
    if (&socket != &arp_) {
      if (setsockopt(socket.descriptor, SOL_SOCKET, SO_BINDTODEVICE, name_.c_str(),
                     static_cast<socklen_t>(name_.size() + 1)) != 0) {
        throw std::system_error(errno, std::generic_category(), "cannot bind a socket to " + name_);
      }
    }
    socket.watch = std::make_unique<DescriptorWatch>(io_, socket.descriptor, std::move(read));
  };
  watch(vrrp4_, [this] { read_vrrp(true); });
  watch(vrrp6_, [this] { read_vrrp(false); });
  watch(arp_, [this] { read_arp(); });
  watch(icmpv6_, [this] { read_icmpv6(); });
}

void LanPort::detach() {
  for (Socket* socket : {&sender_, &vrrp4_, &vrrp6_, &arp_, &icmpv6_}) socket->close();
}

int LanPort::send(std::span<const std::byte> frame) {
  if (state_.index == 0) return ENODEV;
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_ifindex = static_cast<int>(state_.index);
  return sendto(sender_.descriptor, frame.data(), frame.size(), 0,
                reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0
             ? errno
             : 0;
}

void LanPort::read() {
  read_vrrp(true);
  read_vrrp(false);
  read_arp();
  read_icmpv6();
}

void LanPort::read_vrrp(bool ipv4) {
  for (unsigned i = 0; i < kMostReadAtOnce; ++i) {
    const int descriptor = ipv4 ? vrrp4_.descriptor : vrrp6_.descriptor;  // a callback may have closed it
    if (descriptor < 0) return;
    std::array<std::byte, kMostRead> buffer;
    sockaddr_storage from{};
    iovec data{buffer.data(), buffer.size()};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(in6_pktinfo))>
        control{};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t length = recvmsg(descriptor, &message, 0);
    if (length < 0) {
      if (errno == EINTR) continue;
      return;
    }
    VrrpDatagram datagram;
    std::span<const std::byte> bytes = std::span(buffer).first(static_cast<std::size_t>(length));
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if ((header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_TTL) ||
          (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_HOPLIMIT)) {
        datagram.hop_limit = value_of<int>(header);
      } else if (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_PKTINFO) {
        datagram.destination = from_ipv4(value_of<in_pktinfo>(header).ipi_addr);
      } else if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_PKTINFO) {
        datagram.destination = from_ipv6(value_of<in6_pktinfo>(header).ipi6_addr);
      }
    }
    if (ipv4) {  // the kernel leaves the IPv4 header on
      datagram.source = from_ipv4(reinterpret_cast<const sockaddr_in*>(&from)->sin_addr);
      if (bytes.empty()) continue;
      const std::size_t header = (std::to_integer<std::size_t>(bytes[0]) & 0x0F) * 4;
      if (header > bytes.size()) continue;
      bytes = bytes.subspan(header);
      if (datagram.source == state_.primary4) continue;
    } else {
      datagram.source = from_ipv6(reinterpret_cast<const sockaddr_in6*>(&from)->sin6_addr);
      if (datagram.source == state_.primary6) continue;
    }
    datagram.payload = bytes;
    callbacks_.received(datagram);
  }
}

void LanPort::read_arp() {
  for (unsigned i = 0; i < kMostReadAtOnce && arp_.descriptor >= 0; ++i) {
    std::array<std::byte, 64> buffer;
    const ssize_t length = recv(arp_.descriptor, buffer.data(), buffer.size(), 0);
    if (length < 0) return;
    const auto sender = arp_reply_sender(std::span(buffer).first(static_cast<std::size_t>(length)));
    if (sender) callbacks_.answered(*sender);
  }
}

void LanPort::read_icmpv6() {
  for (unsigned i = 0; i < kMostReadAtOnce && icmpv6_.descriptor >= 0; ++i) {
    std::array<std::byte, 256> buffer;
    const ssize_t length = recv(icmpv6_.descriptor, buffer.data(), buffer.size(), 0);
    if (length < 0) return;
    const auto target =
        neighbour_advertisement_target(std::span(buffer).first(static_cast<std::size_t>(length)));
    if (target) callbacks_.answered(*target);
  }
}

}  // namespace fabric::daemon
