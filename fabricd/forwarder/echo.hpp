// The payload of echo frames: what ping, trace, lat and the report of bw ask and answer. 40 bytes, network
// byte order; the report has 32 more; padding up to the size asked for comes after and is sent back as it is.
//
//   byte  0   1            2              3      4          5        6..7        8..11    12..15
//         op  hop limit    hop limit      flags  reply way  ingress  answering   session  unused
//             at the start at the answer                             base LID
//   16..23    24..31                  32..39
//   sequence  time at the asking host time at the answering host (each its own clock, ns)
//   report: 40..47 frames, 48..55 bytes, 56..63 ns from first to last frame, 64..71 best rate in bytes/s
//
// A stream frame's payload begins with the session in 4 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace fabric::daemon {

struct Echo {
  enum class Operation : std::uint8_t {
    request = 1,  ///< answered by the destination, with `reply`
    reply = 2,
    hop_limit = 3,       ///< answer of the relay where the hop limit ended
    report_request = 4,  ///< of a stream
    report = 5,
  };
  static constexpr std::size_t kSize = 40;
  static constexpr std::size_t kReportSize = kSize + 32;
  static constexpr std::uint8_t kAnyWay = 0xFF;  ///< the answering host picks the way of the answer
  static constexpr std::uint8_t kTurned = 1;     ///< the request was turned

  Operation operation = Operation::request;
  std::uint8_t hop_limit_start = 0, hop_limit_end = 0, flags = 0, reply_way = kAnyWay, ingress = 0xFF;
  std::uint16_t from = 0;
  std::uint32_t session = 0;
  std::uint64_t sequence = 0, asked = 0, answered = 0;
  struct Report {
    std::uint64_t frames = 0, bytes = 0, elapsed = 0, peak = 0;
  } report;

  /// Writes kSize bytes, kReportSize for a report.
  void encode(std::span<std::byte> out) const noexcept;
  /// Nothing if too short or of an unknown operation.
  static std::optional<Echo> decode(std::span<const std::byte> in) noexcept;
};

inline constexpr std::size_t kStreamHeader = 4;
void put_session(std::span<std::byte> out, std::uint32_t session) noexcept;
std::uint32_t get_session(std::span<const std::byte> in) noexcept;

}  // namespace fabric::daemon
