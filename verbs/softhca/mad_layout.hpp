// Offsets and numbers of management datagrams that several files need. Attributes' fields are read and
// written with libibmad's codec where it has them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "verbs/softhca/lab_memory.hpp"

namespace fabric::softhca {

// The common MAD header, and what subnet management packets have behind it: byte offsets.
inline constexpr std::size_t kBaseVersion = 0, kMgmtClass = 1, kClassVersion = 2, kMethod = 3, kStatus = 4,
                             kHopPointer = 6, kHopCount = 7, kTransaction = 8, kAttribute = 16,
                             kModifier = 20, kMkey = 24, kDrSlid = 32, kDrDlid = 34, kSmpData = 64,
                             kInitialPath = 128, kReturnPath = 192, kMadHeaderSize = 24;
// Behind the MAD header of classes that use RMPP.
inline constexpr std::size_t kRmppVersion = 24, kRmppType = 25, kRmppFlags = 26, kRmppSegment = 28,
                             kRmppPayload = 32, kRmppHeaderEnd = 36;
inline constexpr std::uint8_t kRmppActive = 1, kRmppFirst = 2, kRmppLast = 4;
inline constexpr std::uint8_t kDirectionBit = 0x80;  ///< of the first status byte of a directed-route SMP
inline constexpr std::uint8_t kMaxHops = 63;

inline constexpr std::uint8_t kClassSubnLid = 0x01, kClassSubnDirected = 0x81, kClassSubnAdm = 0x03,
                              kClassPerformance = 0x04;
inline constexpr std::uint8_t kMethodGet = 0x01, kMethodSet = 0x02, kMethodTrap = 0x05,
                              kMethodTrapRepress = 0x07, kMethodGetResp = 0x81, kResponseBit = 0x80;

// MAD status.
inline constexpr std::uint16_t kStatusBadVersion = 1 << 2, kStatusBadMethod = 2 << 2,
                               kStatusBadAttribute = 3 << 2, kStatusBadValue = 7 << 2;

// PortInfo:CapabilityMask.
inline constexpr std::uint32_t kIsSm = 1u << 1, kIsTrapSupported = 1u << 3, kIsSlMappingSupported = 1u << 6,
                               kIsSystemImageGuidSupported = 1u << 11, kIsExtendedSpeedsSupported = 1u << 14,
                               kIsVendorClassSupported = 1u << 20,
                               kIsCapabilityMaskNoticeSupported = 1u << 22,
                               kIsClientReregistrationSupported = 1u << 25,
                               kIsOtherLocalChangesNoticeSupported = 1u << 26;

inline constexpr std::uint16_t kTrapLinkIntegrity = 129, kTrapBufferOverrun = 130, kTrapWatchdog = 131,
                               kTrapLocalChange = 144, kTrapBadMkey = 256, kTrapBadPkey = 257,
                               kTrapBadQkey = 258;
// Trap 144, change flags.
inline constexpr std::uint8_t kNodeDescriptionChange = 1, kLinkWidthEnabledChange = 2,
                              kLinkSpeedEnabledChange = 4;

inline constexpr std::uint64_t kDefaultPrefix = 0xFE80000000000000;
inline constexpr std::uint8_t kVlCap = 3;  ///< VL0 to VL3
inline constexpr std::size_t kNodeDescriptionSize = 64;

template <class Bytes>
std::uint16_t load16(const Bytes& bytes, std::size_t at) {
  return static_cast<std::uint16_t>(bytes[at] << 8 | bytes[at + 1]);
}
template <class Bytes>
std::uint32_t load32(const Bytes& bytes, std::size_t at) {
  return std::uint32_t{load16(bytes, at)} << 16 | load16(bytes, at + 2);
}
template <class Bytes>
std::uint64_t load64(const Bytes& bytes, std::size_t at) {
  return std::uint64_t{load32(bytes, at)} << 32 | load32(bytes, at + 4);
}
template <class Bytes>
void store16(Bytes& bytes, std::size_t at, std::uint16_t value) {
  bytes[at] = static_cast<std::uint8_t>(value >> 8);
  bytes[at + 1] = static_cast<std::uint8_t>(value);
}
template <class Bytes>
void store32(Bytes& bytes, std::size_t at, std::uint32_t value) {
  store16(bytes, at, static_cast<std::uint16_t>(value >> 16));
  store16(bytes, at + 2, static_cast<std::uint16_t>(value));
}
template <class Bytes>
void store64(Bytes& bytes, std::size_t at, std::uint64_t value) {
  store32(bytes, at, static_cast<std::uint32_t>(value >> 32));
  store32(bytes, at + 4, static_cast<std::uint32_t>(value));
}

/// Whether a unicast LID is one of the port's 2^LMC.
inline bool is_lid_of(const SharedPort& port, std::uint16_t lid) {
  return port.lid != 0 && std::uint32_t{lid} >> port.lmc == port.lid >> port.lmc;
}

/// Writes a group of a port's values so that readers of SharedPort::change see all or none of it.
class PortChange {
 public:
  explicit PortChange(SharedPort& port) : port_(port) { ++port_.change; }
  ~PortChange() { ++port_.change; }
  PortChange(const PortChange&) = delete;
  PortChange& operator=(const PortChange&) = delete;

 private:
  SharedPort& port_;
};

}  // namespace fabric::softhca
