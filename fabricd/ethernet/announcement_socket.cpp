// Announcements are sent with hop limit 255 and taken with no other, so that none can come from behind a
// router (RFC 5082). The socket is bound to the group's address with the interface as its scope: several
// cables of one host have a socket each, and none hears what arrives on another interface.
#include "fabricd/ethernet/announcement_socket.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "fabricd/watch.hpp"

namespace fabric::daemon {

namespace {

constexpr int kHopLimit = 255;
constexpr std::size_t kMostRead = 512;    ///< bytes; more than any announcement
constexpr unsigned kMostReadAtOnce = 64;  ///< datagrams; a flood must not keep the control thread

sockaddr_in6 group_address(unsigned interface) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(AnnouncementSocket::kPort);
  address.sin6_scope_id = interface;
  inet_pton(AF_INET6, AnnouncementSocket::kGroup, &address.sin6_addr);
  return address;
}

void set_option(int descriptor, int option, int value) {
  if (setsockopt(descriptor, IPPROTO_IPV6, option, &value, sizeof value) != 0)
    throw std::system_error(errno, std::generic_category(), "setsockopt of the announcement socket");
}

}  // namespace

AnnouncementSocket::AnnouncementSocket(boost::asio::io_context& io, unsigned interface, Received received)
    : interface_(interface),
      received_(std::move(received)),
      descriptor_(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_UDP)) {
  if (descriptor_ < 0)
    throw std::system_error(errno, std::generic_category(), "cannot make an IPv6 socket for announcements");
  try {
    const int yes = 1;
    setsockopt(descriptor_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    set_option(descriptor_, IPV6_V6ONLY, 1);
    set_option(descriptor_, IPV6_MULTICAST_HOPS, kHopLimit);
    set_option(descriptor_, IPV6_MULTICAST_LOOP, 0);
    set_option(descriptor_, IPV6_MULTICAST_IF, static_cast<int>(interface));
    set_option(descriptor_, IPV6_RECVHOPLIMIT, 1);
    const sockaddr_in6 group = group_address(interface);
    if (bind(descriptor_, reinterpret_cast<const sockaddr*>(&group), sizeof group) != 0)
      throw std::system_error(errno, std::generic_category(), "bind of the announcement socket");
    const ipv6_mreq membership{group.sin6_addr, interface};
    if (setsockopt(descriptor_, IPPROTO_IPV6, IPV6_JOIN_GROUP, &membership, sizeof membership) != 0)
      throw std::system_error(errno, std::generic_category(), "cannot join the group of announcements");
    watch_ = std::make_unique<DescriptorWatch>(io, descriptor_, [this] { read(); });
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

AnnouncementSocket::~AnnouncementSocket() {
  watch_.reset();
  close(descriptor_);
}

int AnnouncementSocket::send(const Address& source, std::span<const std::byte> bytes) {
  sockaddr_in6 group = group_address(interface_);
  iovec data{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(in6_pktinfo))> control{};
  msghdr message{};
  message.msg_name = &group;
  message.msg_namelen = sizeof group;
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = IPPROTO_IPV6;
  header->cmsg_type = IPV6_PKTINFO;
  header->cmsg_len = CMSG_LEN(sizeof(in6_pktinfo));
  in6_pktinfo from{};
  std::memcpy(&from.ipi6_addr, source.data(), source.size());
  from.ipi6_ifindex = interface_;
  std::memcpy(CMSG_DATA(header), &from, sizeof from);
  return sendmsg(descriptor_, &message, 0) < 0 ? errno : 0;
}

void AnnouncementSocket::read() {
  for (unsigned i = 0; i < kMostReadAtOnce; ++i) {
    std::array<std::byte, kMostRead> buffer;
    sockaddr_in6 from{};
    iovec data{buffer.data(), buffer.size()};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t length = recvmsg(descriptor_, &message, 0);
    if (length < 0) {
      if (errno == EINTR) continue;
      return;
    }
    int hops = -1;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_HOPLIMIT)
        std::memcpy(&hops, CMSG_DATA(header), sizeof hops);
    }
    if (hops != kHopLimit || !IN6_IS_ADDR_LINKLOCAL(&from.sin6_addr)) {
      ++dropped_;
      continue;
    }
    Address source{};
    std::memcpy(source.data(), &from.sin6_addr, source.size());
    received_(source, std::span(buffer).first(static_cast<std::size_t>(length)));
  }
}

}  // namespace fabric::daemon
