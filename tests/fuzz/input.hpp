// The bytes that the fuzzer has chosen, read as a script: numbers, choices, strings of bytes. When they are
// used up everything reads as zero, so that a script may end anywhere.
//
// A target that feeds a core reads a script like this: while there is input, one byte picks what happens
// next (a datagram, a timeout, time that passes), the next ones its details. Where a neighbour answers, the
// answer is a good one with some bytes changed: random bytes alone would never get past the first check.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// What must hold whatever the input is. Not assert(): it must be there in every build.
#define FUZZ_REQUIRE(condition)                                                           \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

namespace fabric::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }

  /// A number of so many bytes, big-endian.
  template <class T>
  T number() {
    T value{};
    for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(std::uint64_t{value} << 8 | byte());
    return value;
  }
  std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const std::uint8_t value = rest_.front();
    rest_ = rest_.subspan(1);
    return value;
  }
  /// One of 0..count-1; `count` from 1 to 256.
  unsigned below(unsigned count) { return byte() % count; }
  bool flag() { return (byte() & 1) != 0; }

  /// Up to `length` bytes: fewer where the input ends.
  std::span<const std::uint8_t> bytes(std::size_t length) {
    const auto taken = rest_.first(std::min(length, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }
  std::span<const std::uint8_t> rest() { return bytes(rest_.size()); }
  std::string text(std::size_t length) {
    const auto taken = bytes(length);
    return {taken.begin(), taken.end()};
  }

  /// Fills `target`, whose other bytes keep their value.
  void fill(std::span<std::uint8_t> target) {
    const auto taken = bytes(target.size());
    std::copy(taken.begin(), taken.end(), target.begin());
  }
  /// Changes up to seven bytes of `target`, often none.
  void mutate(std::span<std::uint8_t> target) {
    if (target.empty()) return;
    for (unsigned left = below(16); left > 8; --left)
      target[number<std::uint16_t>() % target.size()] = byte();
  }

 private:
  std::span<const std::uint8_t> rest_;
};

inline std::span<const std::byte> as_bytes(std::span<const std::uint8_t> bytes) {
  return std::as_bytes(bytes);
}

}  // namespace fabric::fuzz
