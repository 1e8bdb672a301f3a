#include "fabricd/forwarder/tun_device.hpp"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <system_error>

#include "fabricd/forwarder/buffer_arena.hpp"

namespace fabric::daemon {
namespace {

// Linux 6.2; Debian 12's headers are older than the kernels that people run.
constexpr unsigned kTunUso4 = 0x20, kTunUso6 = 0x40;
/// Packets that the kernel keeps for us while the data thread is busy or waits for an egress queue; more than
/// the default of 500, so that a burst outlasts the discovery of a dead cable.
constexpr int kQueueLength = 2000;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) close(value);
  }
};

}  // namespace

TunDevice::TunDevice(const std::string& name, unsigned mtu) {
  if (name.empty() || name.size() >= IFNAMSIZ) {
    errno = EINVAL;
    fail("device name '" + name + "'");
  }
  Descriptor tun{open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC)};
  if (tun.value < 0) fail("/dev/net/tun");
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), name.size());
  request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL;
  if (ioctl(tun.value, TUNSETIFF, &request) < 0) fail("TUN device " + name);
  name_ = request.ifr_name;

  int header = kVirtioHeader, one = 1;
  if (ioctl(tun.value, TUNSETVNETHDRSZ, &header) < 0) fail("TUNSETVNETHDRSZ");
  if (ioctl(tun.value, TUNSETVNETLE, &one) < 0) fail("TUNSETVNETLE");
  // From all to none: what the kernel does not know it refuses as a whole.
  struct Offload {
    unsigned flags;
    const char* names;
  };
  constexpr unsigned kTso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  for (const Offload offload :
       {Offload{kTso | kTunUso4 | kTunUso6, "csum tso4 tso6 uso4 uso6"}, Offload{kTso, "csum tso4 tso6"},
        Offload{TUN_F_CSUM, "csum"}, Offload{0, ""}}) {
    if (ioctl(tun.value, TUNSETOFFLOAD, offload.flags) < 0) continue;
    offloads_ = offload.names;
    break;
  }

  Descriptor socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  if (socket.value < 0) fail("socket");
  request.ifr_mtu = static_cast<int>(mtu);
  if (ioctl(socket.value, SIOCSIFMTU, &request) < 0) fail("MTU of " + name_);
  request.ifr_qlen = kQueueLength;
  if (ioctl(socket.value, SIOCSIFTXQLEN, &request) < 0) fail("queue length of " + name_);
  index_ = if_nametoindex(name_.c_str());
  descriptor_ = tun.value;
  tun.value = -1;
}

TunDevice::~TunDevice() {
  close(descriptor_);
}

long TunDevice::read(std::span<std::byte> buffer) const noexcept {
  const ssize_t length = ::read(descriptor_, buffer.data(), buffer.size());
  return length < 0 ? -errno : length;
}

int TunDevice::write(std::span<const std::byte> header_and_packet) const noexcept {
  return ::write(descriptor_, header_and_packet.data(), header_and_packet.size()) < 0 ? errno : 0;
}

}  // namespace fabric::daemon
