// The TUN device that the kernel's IP stack sees as the fabric: packets with their virtio_net_hdr, so that
// up to 64 KiB pass in one piece with checksum and segmentation left to whoever needs them (which is nobody,
// as long as the packet stays in the fabric).
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace fabric::daemon {

class TunDevice {
 public:
  /// Makes the device, down and without addresses; it goes when the object goes. Throws std::system_error.
  TunDevice(const std::string& name, unsigned mtu);
  /// Takes over a descriptor that gives and takes packets with their header as a TUN device does.
  explicit TunDevice(int descriptor) : descriptor_(descriptor) {}
  ~TunDevice();
  TunDevice(const TunDevice&) = delete;
  TunDevice& operator=(const TunDevice&) = delete;

  [[nodiscard]] int descriptor() const { return descriptor_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] unsigned index() const { return index_; }
  /// Granted offloads: "csum tso4 tso6 uso4 uso6".
  [[nodiscard]] const std::string& offloads() const { return offloads_; }

  /// Virtio header and packet into `buffer`; their length, or a negative errno (-EAGAIN: nothing there).
  [[nodiscard]] long read(std::span<std::byte> buffer) const noexcept;
  /// 0 or errno.
  [[nodiscard]] int write(std::span<const std::byte> header_and_packet) const noexcept;

 private:
  int descriptor_ = -1;
  std::string name_, offloads_;
  unsigned index_ = 0;
};

}  // namespace fabric::daemon
