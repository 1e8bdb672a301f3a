#include "fabricd/forwarder/echo.hpp"

namespace fabric::daemon {
namespace {

template <class T>
void put(std::span<std::byte> out, std::size_t at, T value) noexcept {
  for (std::size_t i = 0; i < sizeof value; ++i)
    out[at + i] = std::byte(static_cast<std::uint8_t>(value >> (8 * (sizeof value - 1 - i))));
}

template <class T>
T get(std::span<const std::byte> in, std::size_t at) noexcept {
  T value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i)
    value = static_cast<T>(value << 8 | std::to_integer<T>(in[at + i]));
  return value;
}

}  // namespace

void Echo::encode(std::span<std::byte> out) const noexcept {
  out[0] = std::byte(operation);
  out[1] = std::byte(hop_limit_start);
  out[2] = std::byte(hop_limit_end);
  out[3] = std::byte(flags);
  out[4] = std::byte(reply_way);
  out[5] = std::byte(ingress);
  put(out, 6, from);
  put(out, 8, session);
  put(out, 12, std::uint32_t{0});
  put(out, 16, sequence);
  put(out, 24, asked);
  put(out, 32, answered);
  if (operation != Operation::report) return;
  put(out, 40, report.frames);
  put(out, 48, report.bytes);
  put(out, 56, report.elapsed);
  put(out, 64, report.peak);
}

std::optional<Echo> Echo::decode(std::span<const std::byte> in) noexcept {
  if (in.size() < kSize) return std::nullopt;
  const auto operation = std::to_integer<unsigned>(in[0]);
  if (operation < static_cast<unsigned>(Operation::request) ||
      operation > static_cast<unsigned>(Operation::report))
    return std::nullopt;
  Echo echo;
  echo.operation = static_cast<Operation>(operation);
  echo.hop_limit_start = std::to_integer<std::uint8_t>(in[1]);
  echo.hop_limit_end = std::to_integer<std::uint8_t>(in[2]);
  echo.flags = std::to_integer<std::uint8_t>(in[3]);
  echo.reply_way = std::to_integer<std::uint8_t>(in[4]);
  echo.ingress = std::to_integer<std::uint8_t>(in[5]);
  echo.from = get<std::uint16_t>(in, 6);
  echo.session = get<std::uint32_t>(in, 8);
  echo.sequence = get<std::uint64_t>(in, 16);
  echo.asked = get<std::uint64_t>(in, 24);
  echo.answered = get<std::uint64_t>(in, 32);
  if (echo.operation != Operation::report) return echo;
  if (in.size() < kReportSize) return std::nullopt;
  echo.report = {get<std::uint64_t>(in, 40), get<std::uint64_t>(in, 48), get<std::uint64_t>(in, 56),
                 get<std::uint64_t>(in, 64)};
  return echo;
}

void put_session(std::span<std::byte> out, std::uint32_t session) noexcept {
  put(out, 0, session);
}
std::uint32_t get_session(std::span<const std::byte> in) noexcept {
  return get<std::uint32_t>(in, 0);
}

}  // namespace fabric::daemon
