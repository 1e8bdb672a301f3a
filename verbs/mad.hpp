// Management datagrams: typed access to their 256 bytes.
//
// A Mad is always whole: decode() takes nothing that is not 256 bytes of base version 1. Attributes are kept
// as the bytes they came in, with accessors by name, so that what this project does not know (reserved and
// vendor bits) survives a Get-modify-Set. Every accessor is total: any bytes give some value, and values
// come out in types with units. Field positions are libibmad's where it has them.
//
// InfiniBand Architecture Specification, volume 1, release 1.4: 13.4 (common header), 14.2 (subnet
// management), 16.5 (vendor classes). Administration (15.2) is where the administrator is.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "words/words.hpp"

namespace fabric::verbs {

/// Where a datagram comes from or goes to.
struct MadAddress {
  Lid lid;  ///< the other end's; permissive for directed routes
  Qpn qpn;  ///< the other end's: 0 subnet management, 1 everything else
  std::uint8_t sl = 0;
  std::uint8_t path_bits = 0;  ///< of the local LID
  std::uint16_t pkey_index = 0;
  bool operator==(const MadAddress&) const = default;
};

inline constexpr Lid kPermissiveLid{0xFFFF};

// Values as they are on the wire. An enumeration here is open: any other value may come.
enum class MadClass : std::uint8_t {
  subnet_lid_routed = 0x01,
  subnet_administration = 0x03,
  vendor_handshake = 0x3A,  ///< vendor range 2, told apart from others' by its OUI
  subnet_directed_route = 0x81,
};

enum class MadMethod : std::uint8_t {
  get = 0x01,
  set = 0x02,
  send = 0x03,
  trap = 0x05,
  report = 0x06,
  trap_repress = 0x07,
  get_table = 0x12,
  get_multi = 0x14,
  remove = 0x15,
  get_response = 0x81,
  report_response = 0x86,
  get_table_response = 0x92,
  get_multi_response = 0x94,
  remove_response = 0x95,
};
inline constexpr std::uint8_t kResponseBit = 0x80;

/// 14.2.5, table of subnet management attributes.
enum class SmAttribute : std::uint16_t {
  notice = 0x0002,
  node_description = 0x0010,
  node_info = 0x0011,
  guid_info = 0x0014,
  port_info = 0x0015,
  pkey_table = 0x0016,
  sl_to_vl_table = 0x0017,
  vl_arbitration_table = 0x0018,
  sm_info = 0x0020,
};

/// 13.4.7: bits of the status that all classes share.
enum class MadStatus : std::uint16_t {
  ok = 0,
  busy = 0x0001,
  bad_version = 0x0004,
  method_not_supported = 0x0008,
  attribute_not_supported = 0x000C,
  invalid_value = 0x001C,
};

/// Numbers in network order, anywhere in a buffer. The caller keeps offset + width within the buffer; the
/// accessors below do so by their constant offsets.
template <std::size_t width>
[[nodiscard]] constexpr std::uint64_t load_big_endian(std::span<const std::uint8_t> bytes,
                                                      std::size_t offset) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < width; ++i) value = value << 8 | bytes[offset + i];
  return value;
}
template <std::size_t width>
constexpr void store_big_endian(std::span<std::uint8_t> bytes, std::size_t offset, std::uint64_t value) {
  for (std::size_t i = 0; i < width; ++i)
    bytes[offset + i] = static_cast<std::uint8_t>(value >> 8 * (width - 1 - i));
}

class Mad {
 public:
  static constexpr std::size_t kSize = 256;
  using Bytes = std::array<std::uint8_t, kSize>;

  /// An empty one: base version 1, class version as the class has it.
  Mad(MadClass management_class, MadMethod method, std::uint16_t attribute, std::uint32_t modifier);
  /// Nothing unless there are exactly 256 bytes with base version 1.
  static std::optional<Mad> decode(std::span<const std::uint8_t> bytes);

  [[nodiscard]] const Bytes& bytes() const { return bytes_; }
  [[nodiscard]] Bytes& bytes() { return bytes_; }

  // The common header.
  [[nodiscard]] MadClass management_class() const { return MadClass{bytes_[1]}; }
  [[nodiscard]] std::uint8_t class_version() const { return bytes_[2]; }
  [[nodiscard]] MadMethod method() const { return MadMethod{bytes_[3]}; }
  [[nodiscard]] bool is_response() const;
  /// Without the direction bit of directed routes.
  [[nodiscard]] std::uint16_t status() const;
  [[nodiscard]] std::uint64_t tid() const { return get<8>(8); }
  [[nodiscard]] std::uint16_t attribute() const { return static_cast<std::uint16_t>(get<2>(16)); }
  [[nodiscard]] std::uint32_t modifier() const { return static_cast<std::uint32_t>(get<4>(20)); }
  void set_method(MadMethod method) { bytes_[3] = static_cast<std::uint8_t>(method); }
  void set_status(std::uint16_t status);
  void set_tid(std::uint64_t tid) { put<8>(8, tid); }
  void set_attribute(std::uint16_t attribute) { put<2>(16, attribute); }
  void set_modifier(std::uint32_t modifier) { put<4>(20, modifier); }

  // Subnet management (classes 0x01 and 0x81).
  [[nodiscard]] bool is_subnet_management() const;
  [[nodiscard]] std::uint64_t m_key() const { return get<8>(24); }
  void set_m_key(std::uint64_t key) { put<8>(24, key); }
  [[nodiscard]] std::uint8_t hop_count() const { return bytes_[7]; }
  [[nodiscard]] std::span<const std::uint8_t, 64> smp_data() const {
    return std::span<const std::uint8_t, kSize>(bytes_).subspan<64, 64>();
  }
  [[nodiscard]] std::span<std::uint8_t, 64> smp_data() {
    return std::span<std::uint8_t, kSize>(bytes_).subspan<64, 64>();
  }

  // Vendor classes of range 2 (16.5.2): RMPP header (unused here), OUI, 216 bytes.
  [[nodiscard]] std::uint32_t oui() const { return static_cast<std::uint32_t>(get<3>(37)); }
  void set_oui(std::uint32_t oui) { put<3>(37, oui); }
  [[nodiscard]] std::span<const std::uint8_t, 216> vendor_data() const {
    return std::span<const std::uint8_t, kSize>(bytes_).subspan<40, 216>();
  }
  [[nodiscard]] std::span<std::uint8_t, 216> vendor_data() {
    return std::span<std::uint8_t, kSize>(bytes_).subspan<40, 216>();
  }

 private:
  explicit Mad(std::span<const std::uint8_t, kSize> bytes);
  template <std::size_t width>
  [[nodiscard]] std::uint64_t get(std::size_t offset) const {
    return load_big_endian<width>(bytes_, offset);
  }
  template <std::size_t width>
  void put(std::size_t offset, std::uint64_t value) {
    store_big_endian<width>(bytes_, offset, value);
  }

  Bytes bytes_{};
};

/// A request with a directed route of one cable at most: to the own port (`egress` 0), or through port
/// `egress` to the other end.
[[nodiscard]] Mad directed_route_request(MadMethod method, SmAttribute attribute, std::uint32_t modifier,
                                         std::uint8_t egress);
/// The answer to `request`: same bytes with the response bit, no status, and for directed routes the
/// direction bit.
[[nodiscard]] Mad response_to(const Mad& request);

/// 64 bytes of an SMP attribute. Copyable; fields by name in the classes below.
class SmpAttribute {
 public:
  using Bytes = std::array<std::uint8_t, 64>;
  SmpAttribute() = default;
  explicit SmpAttribute(std::span<const std::uint8_t, 64> bytes);
  [[nodiscard]] const Bytes& bytes() const { return bytes_; }
  void store(Mad& mad) const;
  bool operator==(const SmpAttribute&) const = default;

 protected:
  [[nodiscard]] std::uint32_t field(int name) const;
  [[nodiscard]] std::uint64_t field64(int name) const;
  void set_field(int name, std::uint32_t value);
  void set_field64(int name, std::uint64_t value);
  Bytes bytes_{};
};

enum class NodeType : std::uint8_t { channel_adapter = 1, switch_ = 2, router = 3 };

/// 14.2.5.3
class NodeInfo : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  [[nodiscard]] NodeType type() const { return NodeType{bytes_[2]}; }
  [[nodiscard]] std::uint8_t port_count() const { return bytes_[3]; }
  [[nodiscard]] Guid system_image_guid() const { return Guid{load_big_endian<8>(bytes_, 4)}; }
  [[nodiscard]] Guid node_guid() const { return Guid{load_big_endian<8>(bytes_, 12)}; }
  [[nodiscard]] Guid port_guid() const { return Guid{load_big_endian<8>(bytes_, 20)}; }
  [[nodiscard]] std::uint16_t partition_cap() const {
    return static_cast<std::uint16_t>(load_big_endian<2>(bytes_, 28));
  }
  [[nodiscard]] std::uint8_t local_port() const { return bytes_[36]; }
};

/// Up to 64 bytes, as people may be shown them (words/text.hpp).
[[nodiscard]] std::string node_description(std::span<const std::uint8_t, 64> bytes);

enum class PortState : std::uint8_t { no_change = 0, down = 1, initialize = 2, armed = 3, active = 4 };
[[nodiscard]] std::string_view to_string(PortState state);

/// Lanes of a width's code: 1, 4, 8, 12, 2 for 1, 2, 4, 8, 16. 0 for any other.
[[nodiscard]] unsigned link_lanes(std::uint8_t width);

struct LinkSpeed {
  unsigned lanes = 0;      ///< 0: unknown
  unsigned lane_rate = 0;  ///< signalling rate of each, in 100 Mbit/s; 0: unknown
  bool operator==(const LinkSpeed&) const = default;
};
/// For people: "4x", and "25 Gbit/s".
[[nodiscard]] std::string lanes_text(LinkSpeed speed);
[[nodiscard]] std::string lane_rate_text(LinkSpeed speed);

/// 14.2.5.6
class PortInfo : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  static constexpr std::uint32_t kCapabilityIsSm = 1U << 1;
  static constexpr std::uint32_t kCapabilityExtendedSpeeds = 1U << 14;
  static constexpr std::uint8_t kPhysicalPolling = 2;

  [[nodiscard]] std::uint64_t m_key() const;
  [[nodiscard]] std::uint64_t gid_prefix() const;
  [[nodiscard]] Lid lid() const;
  [[nodiscard]] Lid sm_lid() const;
  [[nodiscard]] std::uint32_t capability_mask() const;
  [[nodiscard]] bool is_sm() const { return (capability_mask() & kCapabilityIsSm) != 0; }
  [[nodiscard]] PortState state() const;
  [[nodiscard]] std::uint8_t physical_state() const;
  [[nodiscard]] std::uint8_t lmc() const;
  [[nodiscard]] std::uint8_t neighbor_mtu() const;  ///< enum ibv_mtu, as all MTUs here
  [[nodiscard]] std::uint8_t mtu_cap() const;
  [[nodiscard]] std::uint8_t sm_sl() const;
  [[nodiscard]] std::uint8_t vl_cap() const;  ///< 1: VL0, 2: VL0-1, 3: VL0-3, 4: VL0-7, 5: VL0-14
  [[nodiscard]] std::uint8_t operational_vls() const;
  [[nodiscard]] std::uint8_t subnet_timeout() const;
  [[nodiscard]] std::uint8_t vl_arbitration_low_cap() const;   ///< entries of the low-priority table
  [[nodiscard]] std::uint8_t vl_arbitration_high_cap() const;  ///< of the high-priority one
  [[nodiscard]] std::uint8_t guid_cap() const;
  [[nodiscard]] LinkSpeed link_speed() const;
  /// Of a link to `other`, by what both support.
  [[nodiscard]] LinkSpeed fastest_link_speed(const PortInfo& other) const;
  [[nodiscard]] std::uint8_t local_port() const;
  [[nodiscard]] bool client_reregister() const;
  /// What a subnet manager has given the port, for comparison: the fields that it sets and that stay, without
  /// states, capabilities and counters.
  [[nodiscard]] PortInfo given() const;

  void set_m_key(std::uint64_t key);
  void set_gid_prefix(std::uint64_t prefix);
  void set_lid(Lid lid);
  void set_sm_lid(Lid lid);
  void set_sm_sl(std::uint8_t sl);
  void set_lmc(std::uint8_t lmc);
  void set_state(PortState state);
  void set_physical_state(std::uint8_t state);
  void set_link_down_default(std::uint8_t state);
  void set_neighbor_mtu(std::uint8_t mtu);
  void set_operational_vls(std::uint8_t vls);
  void set_subnet_timeout(std::uint8_t timeout);
  void set_client_reregister(bool on);
  void set_m_key_protection(std::uint8_t bits);
  /// How many errors of the link's physical layer, and overruns of receive buffers, raise a trap; 0..15.
  void set_error_thresholds(std::uint8_t local_physical, std::uint8_t overrun);
  void set_m_key_lease(std::chrono::seconds lease);  ///< 0..65535; 0 for ever
  /// Width and speed stay as they are whatever the rest of a Set does.
  void keep_link_width_and_speed();
};

enum class SmState : std::uint8_t { not_active = 0, discovering = 1, standby = 2, master = 3 };
[[nodiscard]] std::string_view to_string(SmState state);

/// AttributeModifier of Set(SMInfo), 14.4.1.
enum class SmControl : std::uint32_t {
  handover = 1,
  acknowledge = 2,
  disable = 3,
  standby = 4,
  discover = 5
};

/// 14.2.5.13
class SmInfo : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  [[nodiscard]] Guid guid() const { return Guid{load_big_endian<8>(bytes_, 0)}; }
  [[nodiscard]] std::uint64_t sm_key() const { return load_big_endian<8>(bytes_, 8); }
  [[nodiscard]] std::uint32_t activity() const {
    return static_cast<std::uint32_t>(load_big_endian<4>(bytes_, 16));
  }
  [[nodiscard]] std::uint8_t priority() const { return bytes_[20] >> 4; }
  [[nodiscard]] SmState state() const { return SmState{static_cast<std::uint8_t>(bytes_[20] & 0x0F)}; }

  void set_guid(Guid guid) { store_big_endian<8>(bytes_, 0, guid.value()); }
  void set_sm_key(std::uint64_t key) { store_big_endian<8>(bytes_, 8, key); }
  void set_activity(std::uint32_t count) { store_big_endian<4>(bytes_, 16, count); }
  void set_priority_and_state(std::uint8_t priority, SmState state) {
    bytes_[20] = static_cast<std::uint8_t>(priority << 4 | (static_cast<std::uint8_t>(state) & 0x0F));
  }
};

/// 14.2.5.7: one block of 32 P_Keys.
class PkeyTable : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  static constexpr std::size_t kBlock = 32;
  [[nodiscard]] std::uint16_t pkey(std::size_t index) const {
    return static_cast<std::uint16_t>(load_big_endian<2>(bytes_, 2 * (index % kBlock)));
  }
  void set_pkey(std::size_t index, std::uint16_t pkey) {
    store_big_endian<2>(bytes_, 2 * (index % kBlock), pkey);
  }
};

/// 14.2.5.5: one block of 8 GUIDs.
class GuidInfo : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  static constexpr std::size_t kBlock = 8;
  [[nodiscard]] Guid guid(std::size_t index) const {
    return Guid{load_big_endian<8>(bytes_, 8 * (index % kBlock))};
  }
};

/// 14.2.5.8: the virtual lane of each of the 16 service levels, for what an adapter sends.
class SlToVlTable : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  static constexpr std::size_t kServiceLevels = 16;
  [[nodiscard]] std::uint8_t vl(std::size_t sl) const {
    return static_cast<std::uint8_t>(bytes_[sl % kServiceLevels / 2] >> (sl % 2 == 0 ? 4 : 0) & 0x0F);
  }
  void set_vl(std::size_t sl, std::uint8_t vl) {
    std::uint8_t& byte = bytes_[sl % kServiceLevels / 2];
    byte = static_cast<std::uint8_t>(sl % 2 == 0 ? vl << 4 | (byte & 0x0F) : (byte & 0xF0) | (vl & 0x0F));
  }
};

/// 13.4.8.2: a Notice, as an SMP's 64 or an SA MAD's data carries it. The first 64 bytes hold everything but
/// the issuer's GID.
class NoticeAttribute : public SmpAttribute {
 public:
  using SmpAttribute::SmpAttribute;
  [[nodiscard]] bool is_generic() const { return (bytes_[0] & 0x80) != 0; }
  [[nodiscard]] std::uint8_t type() const { return bytes_[0] & 0x7F; }
  [[nodiscard]] std::uint32_t producer() const {
    return static_cast<std::uint32_t>(load_big_endian<3>(bytes_, 1));
  }
  [[nodiscard]] std::uint16_t trap() const {
    return static_cast<std::uint16_t>(load_big_endian<2>(bytes_, 4));
  }
  [[nodiscard]] Lid issuer() const { return Lid{static_cast<std::uint16_t>(load_big_endian<2>(bytes_, 6))}; }
};

}  // namespace fabric::verbs
