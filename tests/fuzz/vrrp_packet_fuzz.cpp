// VRRP packets from anybody: the first bytes say family and hop limit, the rest is the payload. What is
// understood must say the same when it is encoded and decoded again.
//
// Subjects: fabricd/gateway/vrrp_packet.cpp fabricd/addresses.cpp
#include <cstdint>
#include <cstdlib>
#include <span>

#include "fabricd/addresses.hpp"
#include "fabricd/gateway/vrrp_packet.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fabric::daemon;
  if (size < 2) return 0;
  const auto source = *parse_address((data[0] & 1) != 0 ? "192.0.2.11" : "fe80::11");
  const VrrpDatagram datagram{source, vrrp_group(is_ipv4(source)), data[1],
                              std::as_bytes(std::span(data + 2, size - 2))};
  const auto decoded = decode_vrrp(datagram);
  if (const auto* packet = std::get_if<VrrpPacket>(&decoded)) {
    const auto again = encode_vrrp(*packet, source);
    if (decode_vrrp({source, datagram.destination, 255, again}) != decoded) std::abort();
  }
  return 0;
}
