// For fabric-lab and tests: one request to the control socket of a hardware process (control.hpp).
#pragma once

#include <string>

namespace fabric::softhca {

/// Sends one line to the socket at `path` (PATH.ctl) and returns the answer line, without its end. Throws
/// std::system_error where nobody answers there, or not within ten seconds.
std::string control(const std::string& path, const std::string& request_line);

}  // namespace fabric::softhca
