// A management packet on a cable: an unreliable datagram to queue pair 0 or 1 with one 256-byte MAD.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace fabric::softhca {

using Mad = std::array<std::uint8_t, 256>;

inline constexpr std::uint16_t kPermissiveLid = 0xFFFF;
/// Octets that PortXmitData counts for one: LRH 8, BTH 12, DETH 8, MAD 256, ICRC 4.
inline constexpr unsigned kMadPacketOctets = 288;

struct GlobalRoute {
  std::array<std::uint8_t, 16> sgid{}, dgid{};
  std::uint32_t flow_label = 0;
  std::uint8_t hop_limit = 0, traffic_class = 0;
};

inline constexpr std::uint32_t kGsiQkey = 0x80010000;  ///< of queue pair 1 (10.2.5)

struct Packet {
  std::uint32_t dst_qp = 0, src_qp = 0;  ///< 0 or 1
  std::uint16_t dlid = 0, slid = 0;      ///< host byte order
  std::uint8_t sl = 0;
  std::uint16_t pkey = 0xFFFF;
  std::uint32_t qkey = kGsiQkey;
  std::optional<GlobalRoute> grh;
  Mad mad{};
};

/// Of a packet that a port has dropped because of its P_Key or Q_Key: what the manager is told.
struct KeyViolation {
  std::uint16_t slid = 0, dlid = 0;
  std::uint32_t key = 0;
  std::uint8_t sl = 0;
  std::uint32_t src_qp = 0, dst_qp = 0;
};

}  // namespace fabric::softhca
