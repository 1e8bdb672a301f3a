#include "fabricd/gateway/vrrp_packet.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "fabricd/addresses.hpp"
#include "fabricd/gateway/lan_frames.hpp"
#include "tests/unit/conformance.hpp"

namespace fabric::daemon {
namespace {

using namespace std::chrono_literals;
using routing::Centiseconds;

const routing::IpAddress kSource4 = *parse_address("192.0.2.11"), kSource6 = *parse_address("fe80::11");

std::vector<std::byte> bytes(std::initializer_list<int> list) {
  std::vector<std::byte> result;
  for (const int value : list) result.push_back(std::byte(value));
  return result;
}

VrrpPacket packet4(std::uint8_t version = 3) {
  return {version, 7, 200, Centiseconds(100), {*parse_address("192.0.2.1"), *parse_address("192.0.2.2")}};
}
VrrpPacket packet6() {
  return {3, 7, 200, Centiseconds(100), {*parse_address("fe80::7"), *parse_address("2001:db8::1")}};
}

struct Received {
  routing::IpAddress source;
  std::vector<std::byte> payload;
  int hop_limit = 255;
  std::optional<routing::IpAddress> destination;

  [[nodiscard]] auto decode() const {
    return decode_vrrp({source, destination.value_or(vrrp_group(is_ipv4(source))), hop_limit, payload});
  }
  [[nodiscard]] std::string discard() const {
    const auto result = decode();
    const auto* reason = std::get_if<VrrpDiscard>(&result);
    return reason != nullptr ? name_of(*reason) : "";
  }
  /// With the checksum made right again.
  Received& repaired() {
    payload[6] = payload[7] = std::byte(0);
    const std::uint16_t sum = is_ipv4(source) ? internet_checksum(payload)
                                              : internet_checksum(source, vrrp_group(false), 112, payload);
    payload[6] = std::byte(sum >> 8);
    payload[7] = std::byte(sum & 0xFF);
    return *this;
  }
};

Received good4(std::uint8_t version = 3) {
  return {kSource4, encode_vrrp(packet4(version), kSource4)};
}
Received good6() {
  return {kSource6, encode_vrrp(packet6(), kSource6)};
}

TEST(VrrpPacket, BytesOfVersion3OverIpv4) {
  FABRIC_SHOWS("RFC 9568, 5.2", "MUST", "the fields of an advertisement, reserved bits 0 when sent");
  VrrpPacket packet = packet4();
  packet.addresses.pop_back();
  packet.checksum = VrrpChecksum::message;
  // Sum by hand: 3107 + c801 + 0064 + c000 + 0201 = 1bb6d -> bb6e -> ~ 4491.
  EXPECT_EQ(encode_vrrp(packet, kSource4), bytes({0x31, 7, 200, 1, 0, 100, 0x44, 0x91, 192, 0, 2, 1}));
}

TEST(VrrpPacket, BytesOfVersion2) {
  FABRIC_SHOWS("RFC 3768, 5.3", "MUST",
               "version 2: authentication type 0, interval in seconds, 8 bytes of authentication data, zero");
  VrrpPacket packet = packet4(2);
  packet.addresses.pop_back();
  EXPECT_EQ(encode_vrrp(packet, kSource4),
            bytes({0x21, 7, 200, 1, 0, 1, 0x54, 0xF4, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0}));
}

TEST(VrrpPacket, Version2NeverSaysZeroSeconds) {
  VrrpPacket packet = packet4(2);
  packet.interval = Centiseconds(5);
  EXPECT_EQ(encode_vrrp(packet, kSource4)[5], std::byte(1));
}

TEST(VrrpPacket, ComesBackAsItWent) {
  FABRIC_SHOWS("RFC 9568, 5.2.8", "MUST",
               "checksum over IPv6 with the pseudo-header, over IPv4 with the message; RFC 5798's form for "
               "IPv4 is understood too");
  for (const auto form : {VrrpChecksum::pseudo, VrrpChecksum::message}) {
    VrrpPacket packet = packet4();
    packet.checksum = form;
    const auto decoded = Received{kSource4, encode_vrrp(packet, kSource4)}.decode();
    ASSERT_TRUE(std::holds_alternative<VrrpPacket>(decoded));
    EXPECT_EQ(std::get<VrrpPacket>(decoded), packet);
  }
  const auto decoded6 = good6().decode();
  ASSERT_TRUE(std::holds_alternative<VrrpPacket>(decoded6));
  EXPECT_EQ(std::get<VrrpPacket>(decoded6), packet6());
  const auto decoded2 = good4(2).decode();
  ASSERT_TRUE(std::holds_alternative<VrrpPacket>(decoded2));
  EXPECT_EQ(std::get<VrrpPacket>(decoded2).interval, Centiseconds(100));
}

TEST(VrrpPacket, HopLimit) {
  FABRIC_SHOWS("RFC 9568, 5.1.1.3 and 5.1.2.3", "MUST", "discard what has not a TTL or hop limit of 255");
  FABRIC_SHOWS("RFC 9568, 7.1", "MUST", "verify TTL or hop limit, version, type, completeness, checksum");
  for (const int limit : {0, 1, 64, 254}) {
    auto received = good4();
    received.hop_limit = limit;
    EXPECT_EQ(received.discard(), "hop_limit");
    received = good6();
    received.hop_limit = limit;
    EXPECT_EQ(received.discard(), "hop_limit");
  }
}

TEST(VrrpPacket, Destination) {
  FABRIC_SHOWS("RFC 9568, 5.1.1.2 and 5.1.2.2", "MUST", "the destination is 224.0.0.18 or ff02::12");
  auto received = good4();
  received.destination = *parse_address("192.0.2.12");
  EXPECT_EQ(received.discard(), "destination");
}

TEST(VrrpPacket, SourceOverIpv6IsLinkLocal) {
  FABRIC_SHOWS("RFC 9568, 5.1.2.1", "MUST", "over IPv6 the source is a link-local address");
  Received received{*parse_address("2001:db8::11"), encode_vrrp(packet6(), *parse_address("2001:db8::11"))};
  EXPECT_EQ(received.discard(), "source");
}

TEST(VrrpPacket, Version) {
  for (const int version : {0, 1, 4, 15}) {
    auto received = good4();
    received.payload[0] = std::byte(version << 4 | 1);
    EXPECT_EQ(received.repaired().discard(), "version");
  }
  auto received = good6();  // version 2 has no IPv6
  received.payload[0] = std::byte(0x21);
  EXPECT_EQ(received.repaired().discard(), "version");
}

TEST(VrrpPacket, Type) {
  FABRIC_SHOWS("RFC 9568, 5.2.2", "MUST", "discard a packet with a type other than ADVERTISEMENT");
  auto received = good4();
  received.payload[0] = std::byte(0x32);
  EXPECT_EQ(received.repaired().discard(), "type");
}

TEST(VrrpPacket, EveryLengthButTheRightOneIsDiscarded) {
  for (const auto& good : {good4(), good4(2), good6()}) {
    for (std::size_t length = 0; length < good.payload.size(); ++length) {
      auto received = good;
      received.payload.resize(length);
      EXPECT_EQ(received.discard(), "truncated");
    }
    auto received = good;
    received.payload.resize(received.payload.size() + 1);
    EXPECT_EQ(received.discard(), "trailing");
  }
}

TEST(VrrpPacket, FieldsThatMakeNoSense) {
  FABRIC_SHOWS("RFC 9568, 5.2.5", "MUST", "ignore an advertisement without addresses");
  auto received = good4();
  received.payload[3] = std::byte(0);
  EXPECT_EQ(received.repaired().discard(), "no_address");
  received = good4();
  received.payload[1] = std::byte(0);
  EXPECT_EQ(received.repaired().discard(), "vrid_zero");
  FABRIC_SHOWS("RFC 9568, 5.2.7", "MUST", "an interval of 0 is not valid");
  received = good4();
  received.payload[4] = std::byte(0xF0);
  received.payload[5] = std::byte(0);
  EXPECT_EQ(received.repaired().discard(), "interval_zero");
  received = good4(2);
  received.payload[4] = std::byte(1);
  EXPECT_EQ(received.repaired().discard(), "authentication");
}

TEST(VrrpPacket, ReservedBitsAreIgnored) {
  FABRIC_SHOWS("RFC 9568, 5.2.6", "MUST", "reserved bits are ignored when received");
  auto received = good4();
  received.payload[4] |= std::byte(0xF0);
  const auto decoded = received.repaired().decode();
  ASSERT_TRUE(std::holds_alternative<VrrpPacket>(decoded));
  EXPECT_EQ(std::get<VrrpPacket>(decoded).interval, Centiseconds(100));
}

TEST(VrrpPacket, EveryFlippedBitIsNoticed) {
  for (const auto& good : {good4(), good4(2), good6()}) {
    for (std::size_t bit = 0; bit < good.payload.size() * 8; ++bit) {
      auto received = good;
      received.payload[bit / 8] ^= std::byte(1 << bit % 8);
      EXPECT_NE(received.discard(), "") << bit;
    }
  }
}

TEST(VrrpPacket, EveryReasonHasANameAndATextOfItsOwn) {
  std::set<std::string> names, texts;
  for (std::size_t i = 0; i < kVrrpDiscards; ++i) {
    names.insert(name_of(static_cast<VrrpDiscard>(i)));
    texts.insert(text_of(static_cast<VrrpDiscard>(i)));
  }
  EXPECT_EQ(names.size(), kVrrpDiscards);
  EXPECT_EQ(texts.size(), kVrrpDiscards);
}

TEST(VrrpPacket, NoiseIsDiscarded) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    Received received{i % 2 ? kSource4 : kSource6, {}};
    received.payload.resize(random() % 64);
    for (auto& byte : received.payload) byte = std::byte(random());
    if (received.payload.size() > 1) received.payload[0] = std::byte(i % 3 ? 0x31 : 0x21);
    const auto decoded = received.decode();
    if (const auto* packet = std::get_if<VrrpPacket>(&decoded)) {  // by chance: then it says the same again
      const auto again = Received{received.source, encode_vrrp(*packet, received.source)}.decode();
      EXPECT_EQ(again, decoded);
    }
  }
}

TEST(LanFrames, VirtualMac) {
  FABRIC_SHOWS("RFC 9568, 7.3", "MUST",
               "the virtual MAC address is 00-00-5E-00-01-VRID for IPv4, 00-00-5E-00-02-VRID for IPv6, and "
               "the source of advertisements");
  EXPECT_EQ(virtual_mac(true, 7), (MacAddress{0, 0, 0x5E, 0, 1, 7}));
  EXPECT_EQ(virtual_mac(false, 255), (MacAddress{0, 0, 0x5E, 0, 2, 255}));
  const auto frame = vrrp_frame(virtual_mac(true, 7), kSource4, encode_vrrp(packet4(), kSource4));
  EXPECT_EQ(std::vector(frame.begin(), frame.begin() + 14),
            bytes({0x01, 0x00, 0x5E, 0x00, 0x00, 0x12, 0x00, 0x00, 0x5E, 0x00, 0x01, 0x07, 0x08, 0x00}));
  EXPECT_EQ(internet_checksum(std::span(frame).subspan(14, 20)), 0);
  EXPECT_EQ(frame[22], std::byte(255));
  EXPECT_EQ(frame[23], std::byte(112));
}

TEST(LanFrames, GratuitousArp) {
  FABRIC_SHOWS("RFC 9568, 8.1.2", "MUST", "gratuitous ARP has the virtual MAC address as sender and target");
  const auto frame = announcement(virtual_mac(true, 7), *parse_address("192.0.2.1"));
  EXPECT_EQ(frame,
            bytes({0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0,   0, 0x5E, 0, 1,    7, 8, 6,                //
                   0,    1,    8,    0,    6,    4,    0,   1, 0,    0, 0x5E, 0, 1, 7, 192, 0, 2, 1,  //
                   0,    0,    0x5E, 0,    1,    7,    192, 0, 2,    1}));
}

TEST(LanFrames, UnsolicitedNeighbourAdvertisement) {
  FABRIC_SHOWS("RFC 9568, 6.4.2 and 8.2.2", "MUST",
               "unsolicited NA: Router flag set, Solicited unset, Override set, target link-layer address "
               "the virtual MAC address");
  const auto address = *parse_address("2001:db8::1");
  const auto frame = announcement(virtual_mac(false, 7), address);
  ASSERT_EQ(frame.size(), 14u + 40 + 32);
  EXPECT_EQ(frame[14 + 7], std::byte(255));
  EXPECT_EQ(frame[14 + 40], std::byte(136));
  EXPECT_EQ(frame[14 + 44], std::byte(0xA0));
  EXPECT_EQ(internet_checksum(address, *parse_address("ff02::1"), 58, std::span(frame).subspan(54)), 0);
  EXPECT_EQ(std::vector(frame.end() - 8, frame.end()), bytes({2, 1, 0, 0, 0x5E, 0, 2, 7}));
}

TEST(LanFrames, AnswersToProbes) {
  const auto request = address_request({2, 0, 0, 0, 0, 1}, kSource4, *parse_address("192.0.2.9"));
  EXPECT_FALSE(arp_reply_sender(std::span(request).subspan(14)));  // a question is no answer
  auto reply = request;
  reply[21] = std::byte(2);
  EXPECT_EQ(arp_reply_sender(std::span(reply).subspan(14)), kSource4);
  EXPECT_FALSE(arp_reply_sender(std::span(reply).subspan(14, 17)));
  const auto unsolicited = announcement(virtual_mac(false, 7), kSource6);
  EXPECT_FALSE(neighbour_advertisement_target(std::span(unsolicited).subspan(54)));
  auto solicited = unsolicited;
  solicited[14 + 44] |= std::byte(0x40);
  EXPECT_EQ(neighbour_advertisement_target(std::span(solicited).subspan(54)), kSource6);
}

}  // namespace
}  // namespace fabric::daemon
