// Reading and writing of numbers in network byte order, with bounds. A Reader that ran over the end, or was
// told that something makes no sense, stays bad and gives zeros; the caller asks once, at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fabric::routing {

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) : out_(out) {}
  template <class T>
  void number(T value) {
    for (std::size_t i = 0; i < sizeof value; ++i)
      out_.push_back(std::byte(static_cast<std::uint8_t>(value >> (8 * (sizeof value - 1 - i)))));
  }
  void bytes(std::span<const std::byte> bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }
  void text(std::string_view text) { bytes(std::as_bytes(std::span(text.data(), text.size()))); }

 private:
  std::vector<std::byte>& out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  template <class T>
  T number() {
    T value = 0;
    for (const std::byte byte : bytes(sizeof(T)))
      value = static_cast<T>(value << 8 | std::to_integer<T>(byte));
    return value;
  }
  std::span<const std::byte> bytes(std::size_t count) {
    if (bad_ || count > in_.size()) {
      bad_ = true;
      return {};
    }
    const auto result = in_.first(count);
    in_ = in_.subspan(count);
    return result;
  }
  std::string text(std::size_t count) {
    const auto raw = bytes(count);
    return {reinterpret_cast<const char*>(raw.data()), raw.size()};
  }
  /// Makes the reader bad unless `holds`.
  void require(bool holds) { bad_ = bad_ || !holds; }
  [[nodiscard]] bool bad() const { return bad_; }
  [[nodiscard]] bool empty() const { return in_.empty(); }
  /// Everything was read and made sense.
  [[nodiscard]] bool done() const { return !bad_ && in_.empty(); }

 private:
  std::span<const std::byte> in_;
  bool bad_ = false;
};

}  // namespace fabric::routing
