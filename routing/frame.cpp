#include "routing/frame.hpp"

namespace fabric::routing {
namespace {

template <class T>
void put(std::byte* out, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out[i] = std::byte(value >> (8 * (sizeof value - 1 - i)));
}

template <class T>
T get(const std::byte* in) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i) value = static_cast<T>(value << 8 | static_cast<T>(in[i]));
  return value;
}

}  // namespace

void FrameHeader::encode(std::span<std::byte, kSize> out) const {
  out[0] = std::byte(kVersion << 4 | (flags & 0xF));
  out[1] = std::byte(hop_limit);
  put(&out[2], destination.value());
  put(&out[4], source.value());
  out[6] = std::byte(static_cast<std::uint8_t>(kind) << 4 | (lane & 0xF));
  out[7] = std::byte(epoch);
  put(&out[8], sequence);
  put(&out[12], flow_hash);
}

std::optional<FrameHeader> FrameHeader::decode(std::span<const std::byte> in) {
  if (in.size() < kSize || std::to_integer<unsigned>(in[0]) >> 4 != kVersion) return std::nullopt;
  const auto kind = std::to_integer<std::uint8_t>(in[6] >> 4);
  if (kind > static_cast<std::uint8_t>(FrameClass::stream)) return std::nullopt;
  FrameHeader header;
  header.flags = std::to_integer<std::uint8_t>(in[0] & std::byte{0xF});
  header.hop_limit = std::to_integer<std::uint8_t>(in[1]);
  header.destination = Lid(get<std::uint16_t>(&in[2]));
  header.source = Lid(get<std::uint16_t>(&in[4]));
  header.kind = static_cast<FrameClass>(kind);
  header.lane = std::to_integer<std::uint8_t>(in[6] & std::byte{0xF});
  header.epoch = std::to_integer<std::uint8_t>(in[7]);
  header.sequence = get<std::uint32_t>(&in[8]);
  header.flow_hash = get<std::uint32_t>(&in[12]);
  return header;
}

}  // namespace fabric::routing
