// Text that came from another host. It ends up on terminals, in JSON and in logs, so nothing but printable
// ASCII is let in: no escape sequences, no half of a UTF-8 sequence that would make an answer of fabricd
// unreadable for those who ask.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace fabric {

constexpr bool is_printable(char c) {
  return c >= ' ' && c <= '~';
}
constexpr bool is_printable(std::string_view text) {
  for (const char c : text)
    if (!is_printable(c)) return false;
  return true;
}

/// `bytes` up to the first NUL, with '?' for what cannot be shown.
inline std::string printable(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    const auto c = std::to_integer<char>(byte);
    if (c == 0) break;
    text.push_back(is_printable(c) ? c : '?');
  }
  return text;
}

}  // namespace fabric
