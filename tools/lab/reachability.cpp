#include "tools/lab/reachability.hpp"

#include <linux/icmp.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace {

using std::chrono::steady_clock;

constexpr std::uint16_t kIdentifier = 0xFAB;  // raw sockets of one namespace are ours alone: no clash to fear

int open_socket(int family) {
  const int protocol = family == AF_INET ? static_cast<int>(IPPROTO_ICMP) : static_cast<int>(IPPROTO_ICMPV6);
  const int fd = socket(family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
  if (fd < 0) throw_system_error("cannot open a raw socket");
  if (family == AF_INET) {
    icmp_filter filter{~(1u << ICMP_ECHOREPLY)};
    setsockopt(fd, SOL_RAW, ICMP_FILTER, &filter, sizeof filter);
  } else {
    icmp6_filter filter;
    ICMP6_FILTER_SETBLOCKALL(&filter);
    ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &filter);
    setsockopt(fd, IPPROTO_ICMPV6, ICMP6_FILTER, &filter, sizeof filter);
  }
  return fd;
}

/// RFC 1071, over the header only: the request has no data.
std::uint16_t checksum(const icmphdr& header) {
  std::uint16_t words[sizeof header / 2];
  std::memcpy(words, &header, sizeof header);
  std::uint32_t sum = 0;
  for (const std::uint16_t word : words) sum += word;
  sum = (sum >> 16) + (sum & 0xFFFF);
  return static_cast<std::uint16_t>(~(sum + (sum >> 16)));
}

}  // namespace

Reachability::Reachability(std::vector<Member> members) : members_(std::move(members)) {
  for (std::size_t from = 0; from < members_.size(); ++from) {
    Sockets sockets;
    members_[from].net.visit([&] {
      sockets.v4 = open_socket(AF_INET);
      sockets.v6 = open_socket(AF_INET6);
    });
    sockets_.push_back(sockets);
    for (std::size_t to = 0; to < members_.size(); ++to)
      if (from != to)
        for (const int family : {AF_INET, AF_INET6}) waiting_.push_back({from, to, family});
  }
}

Reachability::~Reachability() {
  for (const Sockets& sockets : sockets_) {
    close(sockets.v4);
    close(sockets.v6);
  }
}

void Reachability::ask() {
  for (const Pair& pair : waiting_) {
    if (pair.answered) continue;
    const auto sequence = static_cast<std::uint16_t>(pair.to);
    if (pair.family == AF_INET) {
      icmphdr header{};
      header.type = ICMP_ECHO;
      header.un.echo.id = htons(kIdentifier);
      header.un.echo.sequence = htons(sequence);
      header.checksum = checksum(header);
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_addr = members_[pair.to].addresses.v4;
      // Errors (no route yet) are the very thing that is waited out.
      sendto(sockets_[pair.from].v4, &header, sizeof header, 0, reinterpret_cast<sockaddr*>(&to), sizeof to);
    } else {
      icmp6_hdr header{};
      header.icmp6_type = ICMP6_ECHO_REQUEST;
      header.icmp6_id = htons(kIdentifier);
      header.icmp6_seq = htons(sequence);  // the kernel fills in the checksum
      sockaddr_in6 to{};
      to.sin6_family = AF_INET6;
      to.sin6_addr = members_[pair.to].addresses.v6;
      sendto(sockets_[pair.from].v6, &header, sizeof header, 0, reinterpret_cast<sockaddr*>(&to), sizeof to);
    }
  }
}

void Reachability::collect(int socket, int family, std::size_t from) {
  unsigned char packet[512];
  for (ssize_t got; (got = recv(socket, packet, sizeof packet, 0)) > 0;) {
    // A raw IPv4 socket gives the IP header too, a raw ICMPv6 socket does not. The two ICMP headers agree on
    // where identifier and sequence are.
    const std::size_t skip = family == AF_INET ? (packet[0] & 0xFu) * 4u : 0;
    icmp6_hdr header;
    if (static_cast<std::size_t>(got) < skip + sizeof header) continue;
    std::memcpy(&header, packet + skip, sizeof header);
    if (ntohs(header.icmp6_id) != kIdentifier) continue;
    const std::size_t to = ntohs(header.icmp6_seq);
    for (Pair& pair : waiting_) {
      if (pair.from != from || pair.to != to || pair.family != family || pair.answered) continue;
      pair.answered = true;
      ++answered_;
    }
  }
}

bool Reachability::wait(steady_clock::time_point deadline, const std::function<bool()>& stop) {
  std::vector<pollfd> descriptors;
  for (const Sockets& sockets : sockets_) {
    descriptors.push_back({sockets.v4, POLLIN, 0});
    descriptors.push_back({sockets.v6, POLLIN, 0});
  }
  // Seldom enough to leave the processor to the daemons, often enough for a figure in milliseconds.
  const auto interval = std::max<steady_clock::duration>(
      std::chrono::milliseconds(5), std::chrono::microseconds(50) * static_cast<int>(waiting_.size()));
  auto next = steady_clock::now();
  while (answered_ < waiting_.size()) {
    const auto now = steady_clock::now();
    if (now >= deadline || stop()) return false;
    if (now >= next) {
      ask();
      next = now + interval;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - steady_clock::now());
    poll(descriptors.data(), descriptors.size(), static_cast<int>(std::max<long long>(left.count(), 0)));
    for (std::size_t i = 0; i < descriptors.size(); ++i)
      if (descriptors[i].revents != 0) collect(descriptors[i].fd, i % 2 == 0 ? AF_INET : AF_INET6, i / 2);
  }
  return true;
}

std::vector<std::string> Reachability::missing(std::size_t limit) const {
  std::vector<std::string> pairs;
  for (const Pair& pair : waiting_) {
    if (pairs.size() == limit) break;
    if (!pair.answered)
      pairs.push_back(members_[pair.from].name + " to " + members_[pair.to].name +
                      (pair.family == AF_INET ? " (IPv4)" : " (IPv6)"));
  }
  return pairs;
}

}  // namespace fabric::tools::lab
