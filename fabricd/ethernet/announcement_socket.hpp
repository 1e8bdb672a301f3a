// The UDP socket over which announcements travel: bound to one interface, link-local, one hop.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

namespace fabric::daemon {

class DescriptorWatch;

class AnnouncementSocket {
 public:
  using Address = std::array<std::uint8_t, 16>;  ///< IPv6, network order
  using Received = std::function<void(const Address& source, std::span<const std::byte> bytes)>;

  static constexpr const char* kGroup = "ff12::fab:1";  ///< transient, link-local (RFC 4291, 2.7)
  static constexpr std::uint16_t kPort =
      48879;  ///< UDP; of the range that IANA leaves to whoever asks nobody

  /// Sends from and listens on the interface with this number. Throws std::system_error.
  AnnouncementSocket(boost::asio::io_context& io, unsigned interface, Received received);
  ~AnnouncementSocket();
  AnnouncementSocket(const AnnouncementSocket&) = delete;
  AnnouncementSocket& operator=(const AnnouncementSocket&) = delete;

  /// To all on the cable. Returns 0, or the errno: a link that has just gone down refuses.
  int send(const Address& source, std::span<const std::byte> bytes);

  /// Datagrams that were dropped: they were not sent on this link, or to anybody else.
  [[nodiscard]] std::uint64_t dropped() const { return dropped_; }

 private:
  void read();

  unsigned interface_;
  Received received_;
  int descriptor_;
  std::uint64_t dropped_ = 0;
  std::unique_ptr<DescriptorWatch> watch_;
};

}  // namespace fabric::daemon
