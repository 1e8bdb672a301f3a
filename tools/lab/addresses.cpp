#include "tools/lab/addresses.hpp"

#include <arpa/inet.h>

namespace fabric::tools::lab {

namespace {
constexpr const char* kNetwork4 = "10.88.0.0";
constexpr const char* kNetwork6 = "fd88:fab::";
}  // namespace

in_addr address4(unsigned number) {
  in_addr address{};
  inet_pton(AF_INET, kNetwork4, &address);
  address.s_addr = htonl(ntohl(address.s_addr) + number);
  return address;
}

in6_addr address6(unsigned number) {
  in6_addr address{};
  inet_pton(AF_INET6, kNetwork6, &address);
  address.s6_addr[14] = static_cast<std::uint8_t>(number >> 8);
  address.s6_addr[15] = static_cast<std::uint8_t>(number);
  return address;
}

std::string to_string(const in_addr& address) {
  char text[INET_ADDRSTRLEN];
  return inet_ntop(AF_INET, &address, text, sizeof text);
}

std::string to_string(const in6_addr& address) {
  char text[INET6_ADDRSTRLEN];
  return inet_ntop(AF_INET6, &address, text, sizeof text);
}

}  // namespace fabric::tools::lab
