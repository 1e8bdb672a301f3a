#include "fabricd/kernel/upstream.hpp"

#include <fmt/format.h>
#include <linux/icmp.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "fabricd/kernel/interface.hpp"

namespace fabric::daemon {

namespace {

constexpr std::uint16_t kEchoIdentifier = 0xFAB1;

/// The attributes of a netlink message, by type; unknown types are ignored.
template <std::size_t N>
std::array<const rtattr*, N> attributes(const rtattr* first, std::size_t length) {
  std::array<const rtattr*, N> found{};
  for (const rtattr* at = first; RTA_OK(at, length); at = RTA_NEXT(at, length))
    if (at->rta_type < N) found[at->rta_type] = at;
  return found;
}

IpAddress address_in(const rtattr* attribute, bool ipv4) {
  IpAddress address{};
  if (ipv4) address[10] = address[11] = 0xFF;
  std::memcpy(address.data() + (ipv4 ? 12 : 0), RTA_DATA(attribute), ipv4 ? 4 : 16);
  return address;
}

template <class T>
T number_in(const rtattr* attribute) {
  T value{};
  if (attribute != nullptr && RTA_PAYLOAD(attribute) >= sizeof value)
    std::memcpy(&value, RTA_DATA(attribute), sizeof value);
  return value;
}

bool usable(unsigned flags) {
  return (flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN)) == 0;
}

/// Takes one route of a dump into `found`, if it is a default route of somebody else's.
void consider(const nlmsghdr* header, unsigned lan, Upstream& found) {
  const auto* route = static_cast<const rtmsg*>(NLMSG_DATA(header));
  if (route->rtm_dst_len != 0 || route->rtm_type != RTN_UNICAST || route->rtm_protocol == kRouteProtocol)
    return;
  const auto parts = attributes<RTA_MAX + 1>(RTM_RTA(route), RTM_PAYLOAD(header));
  if (number_in<std::uint32_t>(parts[RTA_TABLE]) != RT_TABLE_MAIN) return;
  const bool ipv4 = route->rtm_family == AF_INET;
  DefaultRoute& mine = ipv4 ? found.ipv4 : found.ipv6;
  const auto hop = [&](unsigned flags, unsigned interface, const rtattr* gateway) {
    if (!usable(flags) || interface == 0) return;
    mine.present = true;
    if (interface == lan && gateway != nullptr) mine.next_hops.push_back(address_in(gateway, ipv4));
  };
  if (parts[RTA_MULTIPATH] == nullptr)
    return hop(route->rtm_flags, number_in<std::uint32_t>(parts[RTA_OIF]), parts[RTA_GATEWAY]);
  std::size_t left = RTA_PAYLOAD(parts[RTA_MULTIPATH]);
  const auto* next = static_cast<const rtnexthop*>(RTA_DATA(parts[RTA_MULTIPATH]));
  while (left >= sizeof *next && RTNH_OK(next, static_cast<int>(left))) {
    const auto inner = attributes<RTA_MAX + 1>(RTNH_DATA(next), next->rtnh_len - sizeof *next);
    hop(next->rtnh_flags, static_cast<unsigned>(next->rtnh_ifindex), inner[RTA_GATEWAY]);
    left -= std::min<std::size_t>(left, NLMSG_ALIGN(next->rtnh_len));
    next = RTNH_NEXT(next);
  }
}

}  // namespace

// --- routes

class UpstreamWatch::Socket {
 public:
  /// Without groups: for requests.
  explicit Socket(std::uint32_t groups, int flags = 0)
      : fd_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, NETLINK_ROUTE)) {
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    address.nl_groups = groups;
    if (fd_ < 0 || bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      const int error = errno;
      if (fd_ >= 0) close(fd_);
      throw KernelError(fmt::format("cannot watch the kernel's routes: {}", std::strerror(error)));
    }
  }
  ~Socket() { close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

UpstreamWatch::UpstreamWatch(boost::asio::io_context& io, std::string interface,
                             std::function<void()> changed)
    : interface_(std::move(interface)),
      changed_(std::move(changed)),
      news_(std::make_unique<Socket>(RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE, SOCK_NONBLOCK)),
      watch_(std::make_unique<DescriptorWatch>(io, news_->get(), [this] { ready(); })) {
  now_ = read().value_or(Upstream{});
}

UpstreamWatch::~UpstreamWatch() = default;

void UpstreamWatch::ready() {
  // What has changed does not matter, only whether it may concern a default route: with a full table, routes
  // come by the thousand.
  alignas(nlmsghdr) std::array<char, 32768> buffer;
  bool look = false;
  while (true) {
    const ssize_t got = recv(news_->get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == ENOBUFS) {  // some were lost
      look = true;
      continue;
    }
    if (got <= 0) break;
    auto length = static_cast<std::size_t>(got);
    for (auto* at = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(at, length);
         at = NLMSG_NEXT(at, length)) {
      const bool route = at->nlmsg_type == RTM_NEWROUTE || at->nlmsg_type == RTM_DELROUTE;
      look = look || !route || static_cast<const rtmsg*>(NLMSG_DATA(at))->rtm_dst_len == 0;
    }
  }
  if (!look) return;
  const auto read = this->read();
  if (!read || *read == now_) return;
  now_ = *read;
  changed_();
}

std::optional<Upstream> UpstreamWatch::read() const {
  const Socket socket(0);
  const unsigned lan = if_nametoindex(interface_.c_str());
  Upstream found;
  for (const int family : {AF_INET, AF_INET6}) {
    struct {
      nlmsghdr header;
      rtmsg route;
    } request{};
    request.header.nlmsg_len = NLMSG_LENGTH(sizeof request.route);
    request.header.nlmsg_type = RTM_GETROUTE;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.route.rtm_family = static_cast<unsigned char>(family);
    if (send(socket.get(), &request, request.header.nlmsg_len, 0) < 0) return std::nullopt;
    alignas(nlmsghdr) std::array<char, 32768> buffer;
    for (bool done = false; !done;) {
      const ssize_t got = recv(socket.get(), buffer.data(), buffer.size(), 0);
      if (got <= 0) return std::nullopt;
      auto length = static_cast<std::size_t>(got);
      for (auto* at = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(at, length);
           at = NLMSG_NEXT(at, length)) {
        if (at->nlmsg_type == NLMSG_ERROR) return std::nullopt;  // a kernel without this family has no routes
        if (at->nlmsg_type == NLMSG_DONE) done = true;
        if (at->nlmsg_type == RTM_NEWROUTE) consider(at, lan, found);
      }
    }
  }
  for (DefaultRoute* route : {&found.ipv4, &found.ipv6}) {
    auto& hops = route->next_hops;
    std::sort(hops.begin(), hops.end());
    hops.erase(std::unique(hops.begin(), hops.end()), hops.end());
  }
  return found;
}

// --- probes

UpstreamProbe::UpstreamProbe(boost::asio::io_context& io, std::string interface,
                             std::vector<IpAddress> targets, std::function<void()> changed)
    : interface_(std::move(interface)), changed_(std::move(changed)), timer_(io) {
  for (const IpAddress& target : targets) (is_ipv4(target) ? v4_ : v6_).targets.push_back(target);
  for (Family* family : {&v4_, &v6_}) {
    if (family->targets.empty()) continue;
    const bool ipv4 = family == &v4_;
    family->answers = false;
    family->descriptor = ipv4 ? socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMP)
                              : socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMPV6);
    if (family->descriptor < 0)
      throw KernelError(
          fmt::format("cannot open a socket to probe the upstream with: {}", std::strerror(errno)));
    if (ipv4) {
      const icmp_filter filter{~(1u << ICMP_ECHOREPLY)};
      setsockopt(family->descriptor, SOL_RAW, ICMP_FILTER, &filter, sizeof filter);
    } else {
      icmp6_filter filter;
      ICMP6_FILTER_SETBLOCKALL(&filter);
      ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &filter);
      setsockopt(family->descriptor, IPPROTO_ICMPV6, ICMP6_FILTER, &filter, sizeof filter);
    }
    family->watch = std::make_unique<DescriptorWatch>(io, family->descriptor,
                                                      [this, family, ipv4] { ready(*family, ipv4); });
  }
  if (!targets.empty()) ask();
}

UpstreamProbe::~UpstreamProbe() {
  for (Family* family : {&v4_, &v6_}) {
    family->watch.reset();
    if (family->descriptor >= 0) close(family->descriptor);
  }
}

void UpstreamProbe::ask() {
  ++sequence_;
  ask(v4_, true);
  ask(v6_, false);
  timer_.expires_after(kInterval);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) ask();
  });
}

void UpstreamProbe::ask(Family& family, bool ipv4) {
  if (family.targets.empty()) return;
  if (++family.silent > kPatience && std::exchange(family.answers, false)) changed_();
  // By the LAN's interface, whatever the routing table says now; named anew each time, since it may have been
  // made anew.
  setsockopt(family.descriptor, SOL_SOCKET, SO_BINDTODEVICE, interface_.data(),
             static_cast<socklen_t>(interface_.size()));
  for (const IpAddress& target : family.targets) {
    if (ipv4) {
      icmphdr echo{};
      echo.type = ICMP_ECHO;
      echo.un.echo.id = htons(kEchoIdentifier);
      echo.un.echo.sequence = htons(sequence_);
      std::uint32_t sum = (ICMP_ECHO << 8) + kEchoIdentifier + sequence_;  // RFC 1071
      sum = (sum >> 16) + (sum & 0xFFFF);
      echo.checksum = htons(static_cast<std::uint16_t>(~(sum + (sum >> 16))));
      sockaddr_in to{};
      to.sin_family = AF_INET;
      std::memcpy(&to.sin_addr, target.data() + 12, 4);
      (void)!sendto(family.descriptor, &echo, sizeof echo, 0, reinterpret_cast<sockaddr*>(&to), sizeof to);
    } else {
      icmp6_hdr echo{};
      echo.icmp6_type = ICMP6_ECHO_REQUEST;
      echo.icmp6_id = htons(kEchoIdentifier);
      echo.icmp6_seq = htons(sequence_);  // the kernel fills in the checksum
      sockaddr_in6 to{};
      to.sin6_family = AF_INET6;
      std::memcpy(&to.sin6_addr, target.data(), 16);
      (void)!sendto(family.descriptor, &echo, sizeof echo, 0, reinterpret_cast<sockaddr*>(&to), sizeof to);
    }
  }
}

void UpstreamProbe::ready(Family& family, bool ipv4) {
  std::array<unsigned char, 256> packet;
  bool answered = false;
  for (ssize_t got; (got = recv(family.descriptor, packet.data(), packet.size(), 0)) > 0;) {
    const std::size_t skip = ipv4 ? (packet[0] & 0xFu) * 4u : 0;
    icmp6_hdr echo;  // where identifier and sequence are, the two agree
    if (static_cast<std::size_t>(got) < skip + sizeof echo) continue;
    std::memcpy(&echo, packet.data() + skip, sizeof echo);
    answered = answered || ntohs(echo.icmp6_id) == kEchoIdentifier;
  }
  if (!answered) return;
  family.silent = 0;
  if (!std::exchange(family.answers, true)) changed_();
}

}  // namespace fabric::daemon
