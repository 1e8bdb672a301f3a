#include "fabricd/advice.hpp"

#include <fmt/format.h>

#include <system_error>

namespace fabric::daemon {

std::string advise(const std::string& doing, const std::exception& error) {
  std::string hint;
  if (const auto* system = dynamic_cast<const std::system_error*>(&error)) {
    switch (system->code().value()) {
      case EPERM:
      case EACCES:
        hint =
            "Run fabricd as root, or with the capabilities of the systemd unit "
            "(CAP_NET_ADMIN, CAP_IPC_LOCK, access to /dev/infiniband and /dev/net/tun)";
        break;
      case ENOMEM:
        hint =
            "If memory is not short, the limit of locked memory is: LimitMEMLOCK=infinity in the systemd "
            "unit, "
            "`ulimit -l unlimited` in a shell; or take fewer buffers ([forwarder] in the configuration)";
        break;
      case ENOENT:
      case ENODEV:
      case ENXIO:
        hint =
            "If /dev/net/tun is missing, load the kernel module: modprobe tun; if the adapter's device is, "
            "its "
            "driver: modprobe ib_uverbs ib_umad";
        break;
      case EBUSY:
        hint =
            "Another program has it: is another fabricd running on this host? Stop it, or choose another "
            "name "
            "([network] interface in the configuration)";
        break;
      default:
        break;
    }
  }
  return hint.empty() ? fmt::format("{}: {}", doing, error.what())
                      : fmt::format("{}: {}. {}.", doing, error.what(), hint);
}

}  // namespace fabric::daemon
