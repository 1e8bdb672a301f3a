// Reading IP headers: destination, flow hash; and the ICMP answers, checked with checksums of their own.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "fabricd/forwarder/packet.hpp"

namespace fabric::daemon {
namespace {

using Bytes = std::vector<std::byte>;

Bytes hex(std::initializer_list<int> values) {
  Bytes bytes;
  for (int value : values) bytes.push_back(std::byte(value));
  return bytes;
}
void put(Bytes& bytes, std::size_t at, unsigned word) {
  bytes[at] = std::byte(word >> 8);
  bytes[at + 1] = std::byte(word);
}

/// 10.88.0.1 to 10.88.0.`last`, 8 bytes of payload that begin with the ports.
Bytes ipv4(std::uint8_t protocol, unsigned source_port, unsigned destination_port, int last = 3,
           unsigned fragment = 0) {
  Bytes packet = hex({0x45, 0, 0, 28, 0, 7, 0, 0, 64, protocol, 0, 0, 10, 88, 0, 1, 10, 88, 0, last});
  put(packet, 6, fragment);
  packet.resize(28);
  put(packet, 20, source_port);
  put(packet, 22, destination_port);
  return packet;
}
Bytes ipv6(std::uint8_t next_header, Bytes payload) {
  Bytes packet = hex({0x60, 1, 2, 3, 0, 0, next_header, 64});
  for (int last : {1, 3}) {
    Bytes address = hex({0xFD, 0x88, 0x0F, 0xAB});
    address.resize(16);
    address[15] = std::byte(last);
    packet.insert(packet.end(), address.begin(), address.end());
  }
  put(packet, 4, static_cast<unsigned>(payload.size()));
  packet.insert(packet.end(), payload.begin(), payload.end());
  return packet;
}
/// Sum of 16-bit words with carries: 0xFFFF over what contains its right checksum.
unsigned folded_sum(std::span<const std::byte> bytes, std::uint32_t sum = 0) {
  for (std::size_t i = 0; i < bytes.size(); ++i)
    sum += std::to_integer<unsigned>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
  while (sum > 0xFFFF) sum = (sum & 0xFFFF) + (sum >> 16);
  return sum;
}

TEST(Packet, DestinationOfBothFamilies) {
  const PacketSummary four = summarize(ipv4(6, 1, 2));
  EXPECT_EQ(four.kind, PacketSummary::Kind::unicast);
  EXPECT_EQ(four.version, 4);
  EXPECT_EQ(four.destination, *parse_address("10.88.0.3"));
  const PacketSummary six = summarize(ipv6(6, Bytes(8)));
  EXPECT_EQ(six.kind, PacketSummary::Kind::unicast);
  EXPECT_EQ(six.version, 6);
  EXPECT_EQ(six.destination, *parse_address("fd88:fab::3"));
}

TEST(Packet, MulticastAndBroadcastAreToldApart) {
  Bytes packet = ipv4(17, 1, 2);
  packet[16] = std::byte{239};
  EXPECT_EQ(summarize(packet).kind, PacketSummary::Kind::multicast);
  std::fill(packet.begin() + 16, packet.begin() + 20, std::byte{255});
  EXPECT_EQ(summarize(packet).kind, PacketSummary::Kind::multicast);
  packet = ipv6(58, Bytes(8));
  packet[24] = std::byte{0xFF};
  EXPECT_EQ(summarize(packet).kind, PacketSummary::Kind::multicast);
}

TEST(Packet, EveryShortOrStrangePacketIsSafe) {
  EXPECT_EQ(summarize({}).kind, PacketSummary::Kind::not_ip);
  EXPECT_EQ(summarize(Bytes(60)).kind, PacketSummary::Kind::not_ip) << "version 0";
  std::mt19937 random(7);
  std::array<std::byte, 1280> out;
  for (int i = 0; i < 20'000; ++i) {
    // Exactly as long as it is: the address sanitizer sees any byte read beyond.
    Bytes packet(random() % 80);
    for (auto& byte : packet) byte = std::byte(random());
    if (!packet.empty()) packet[0] = std::byte((random() % 2 != 0 ? 0x40 : 0x60) | (random() & 0xF));
    const bool ip = summarize(packet).kind != PacketSummary::Kind::not_ip;
    const std::size_t minimum = packet.empty() || packet[0] >> 4 == std::byte{6} ? 40 : 20;
    EXPECT_EQ(ip, packet.size() >= minimum);
    build_unreachable(packet, out);
  }
}

TEST(FlowHash, SameForAFlowDifferentForOthers) {
  EXPECT_EQ(summarize(ipv4(6, 1000, 80)).flow_hash, summarize(ipv4(6, 1000, 80)).flow_hash);
  std::set<std::uint32_t> hashes;
  for (unsigned port = 1000; port < 1100; ++port) hashes.insert(summarize(ipv4(6, port, 80)).flow_hash);
  for (int last = 3; last < 103; ++last) hashes.insert(summarize(ipv4(6, 999, 80, last)).flow_hash);
  hashes.insert(summarize(ipv4(17, 1000, 80)).flow_hash);
  EXPECT_EQ(hashes.size(), 201u);
}

TEST(FlowHash, NeighbouringPortsSpreadOverTheLanes) {
  std::array<int, 14> lanes{};
  for (unsigned port = 40000; port < 41400; ++port) ++lanes[summarize(ipv4(6, port, 5201)).flow_hash % 14];
  // 1400 flows, 100 expected on each lane, standard deviation 9.6: five of them.
  for (int count : lanes) EXPECT_NEAR(count, 100, 48);
}

TEST(FlowHash, AllFragmentsOfADatagramAreOneFlow) {
  const auto first = summarize(ipv4(17, 1000, 80, 3, 0x2000));
  const auto later = summarize(ipv4(17, 0xAAAA, 0xBBBB, 3, 0x2064));
  const auto last = summarize(ipv4(17, 0xCCCC, 0xDDDD, 3, 0x00C8));
  EXPECT_EQ(first.flow_hash, later.flow_hash);
  EXPECT_EQ(first.flow_hash, last.flow_hash);
}

TEST(FlowHash, PortsBehindExtensionHeaders) {
  // Destination options of 8 bytes, then UDP.
  const auto packet = [](int port) {
    return ipv6(60, hex({17, 0, 1, 4, 0, 0, 0, 0, 0x10, port, 0, 80, 0, 8, 0, 0}));
  };
  EXPECT_NE(summarize(packet(1)).flow_hash, summarize(packet(2)).flow_hash);
  // A fragment header: the ports do not count, in none of the fragments.
  const auto fragment = [](int offset, int port) {
    return ipv6(44,
                hex({17, 0, offset >> 8, (offset & 0xF8) | 1, 0, 0, 0, 9, 0x10, port, 0, 80, 0, 8, 0, 0}));
  };
  EXPECT_EQ(summarize(fragment(0, 1)).flow_hash, summarize(fragment(8, 2)).flow_hash);
}

TEST(Unreachable, Ipv4AnswersWithTheQuotedPacket) {
  const Bytes packet = ipv4(17, 1000, 80);
  std::array<std::byte, 1280> out;
  const std::size_t length = build_unreachable(packet, out);
  ASSERT_EQ(length, 20u + 8 + 28);
  const std::span message = std::span(out).first(length);
  EXPECT_EQ(folded_sum(message.first(20)), 0xFFFFu) << "header checksum";
  EXPECT_EQ(folded_sum(message.subspan(20)), 0xFFFFu) << "ICMP checksum";
  EXPECT_EQ(std::to_integer<int>(message[9]), 1);
  EXPECT_EQ(std::memcmp(&message[12], &packet[16], 4), 0) << "from the unreachable address";
  EXPECT_EQ(std::memcmp(&message[16], &packet[12], 4), 0) << "to the sender";
  EXPECT_EQ(std::to_integer<int>(message[20]), 3);
  EXPECT_EQ(std::to_integer<int>(message[21]), 1);
  EXPECT_EQ(std::memcmp(&message[28], packet.data(), packet.size()), 0);
}

TEST(Unreachable, Ipv6AnswersWithPseudoHeaderChecksum) {
  const Bytes packet = ipv6(17, hex({0x10, 1, 0, 80, 0, 9, 0, 0, 42}));
  std::array<std::byte, 1280> out;
  const std::size_t length = build_unreachable(packet, out);
  ASSERT_EQ(length, 40u + 8 + 49);
  const std::span message = std::span(out).first(length);
  EXPECT_EQ(folded_sum(message.subspan(40), folded_sum(message.subspan(8, 32), 8 + 49 + 58)), 0xFFFFu);
  EXPECT_EQ(std::to_integer<int>(message[40]), 1);
  EXPECT_EQ(std::to_integer<int>(message[41]), 3);
  EXPECT_EQ(std::memcmp(&message[8], &packet[24], 16), 0);
  EXPECT_EQ(std::memcmp(&message[24], &packet[8], 16), 0);
}

TEST(Unreachable, QuotesNoMoreThanTheStandardsAllow) {
  Bytes four = ipv4(6, 1, 2);
  four.resize(60'000);
  std::array<std::byte, 1280> out;
  EXPECT_EQ(build_unreachable(four, out), 576u);
  EXPECT_EQ(build_unreachable(ipv6(6, Bytes(60'000)), out), 1280u);
}

TEST(Unreachable, NeverAnswersErrorsFragmentsOrNobody) {
  std::array<std::byte, 1280> out;
  const auto answered = [&](const Bytes& packet) { return build_unreachable(packet, out) != 0; };
  Bytes icmp = ipv4(1, 0x0300, 0);
  EXPECT_FALSE(answered(icmp)) << "an unreachable";
  icmp[20] = std::byte{8};
  EXPECT_TRUE(answered(icmp)) << "an echo request";
  EXPECT_FALSE(answered(ipv4(17, 1, 2, 3, 0x0064))) << "a later fragment";
  EXPECT_TRUE(answered(ipv4(17, 1, 2, 3, 0x2000))) << "the first fragment";
  Bytes nobody = ipv4(17, 1, 2);
  std::fill(nobody.begin() + 12, nobody.begin() + 16, std::byte{0});
  EXPECT_FALSE(answered(nobody));
  EXPECT_FALSE(answered(ipv6(58, hex({1, 3, 0, 0, 0, 0, 0, 0})))) << "an ICMPv6 error";
  EXPECT_TRUE(answered(ipv6(58, hex({128, 0, 0, 0, 0, 0, 0, 0})))) << "an ICMPv6 echo request";
}

}  // namespace
}  // namespace fabric::daemon
