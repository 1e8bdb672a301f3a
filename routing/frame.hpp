// The frame: what travels on a cable between two fabricds. A fixed header of 16 bytes and a payload.
//
//   byte  0        1          2    3     4    5      6             7      8..11     12..15
//         version  hop limit  dest. LID  source LID  class | lane  epoch  sequence  flow hash
//         | flags
//
// All numbers are in network byte order. The destination LID says where to and which way: the LID block of a
// host has one LID per way. A relay looks at bytes 0 to 3 only and changes nothing but the hop limit, and,
// where the cable ahead is dead, the way in the destination LID together with the flag `turned`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "words/words.hpp"

namespace fabric::routing {

enum class FrameClass : std::uint8_t {
  packet = 0,  ///< an IP packet behind a virtio_net_hdr
  echo = 1,    ///< measurement: ping, lat, trace (answered by the destination, or where the hop limit ends)
  stream = 2,  ///< measurement: bw (counted by the destination)
};

struct FrameHeader {
  static constexpr std::size_t kSize = 16;
  static constexpr std::uint8_t kVersion = 1;
  static constexpr std::uint8_t kTurned =
      1;  ///< has met a dead cable and goes the other way; never turned again
  static constexpr std::uint8_t kHopLimitEcho = 2;  ///< whoever sees the hop limit end answers (trace)
  /// The source has changed the way of this lane a moment ago, no longer than a destination waits: frames
  /// before this one may still be on the other way, so the destination waits for them (sequence_window.hpp).
  static constexpr std::uint8_t kSteered = 4;

  std::uint8_t flags = 0;      ///< 4 bits
  std::uint8_t hop_limit = 0;  ///< a relay drops the frame when it would become 0
  Lid destination;
  Lid source;  ///< base LID of the sender's block
  FrameClass kind = FrameClass::packet;
  std::uint8_t lane = 0;   ///< 4 bits; sequence numbers and order are kept per (source, destination, lane)
  std::uint8_t epoch = 0;  ///< low bits of the sender's incarnation: a restart begins a new sequence
  std::uint32_t sequence = 0;   ///< of (source, destination, lane), +1 each frame, wraps
  std::uint32_t flow_hash = 0;  ///< same for all packets of one flow

  void encode(std::span<std::byte, kSize> out) const;
  /// Nothing if `in` is shorter than a header, has another version or an unknown class.
  static std::optional<FrameHeader> decode(std::span<const std::byte> in);
};

}  // namespace fabric::routing
