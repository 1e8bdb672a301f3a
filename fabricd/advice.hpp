// Errors of the system as sentences that say what to do.
#pragma once

#include <exception>
#include <string>

namespace fabric::daemon {

/// "cannot open /dev/net/tun: Permission denied. Run fabricd as root, or give it CAP_NET_ADMIN." `doing` is
/// what was tried: "cannot open adapter mlx5_0".
std::string advise(const std::string& doing, const std::exception& error);

}  // namespace fabric::daemon
