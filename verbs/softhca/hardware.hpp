// The hardware process: the model of a lab behind sockets. See hardware.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "verbs/softhca/lab_file.hpp"

namespace fabric::softhca {

struct HardwareOptions {
  LabDescription lab;
  std::string socket;      ///< path for clients; PATH.ctl is the control socket
  std::uint64_t seed = 1;  ///< for everything that is left to chance
};

/// Plays the hardware until SIGTERM or SIGINT; prints "softhca: ready" when clients may come. Throws
/// std::system_error where the sockets or the memory cannot be made.
void run_hardware(const HardwareOptions& options);

}  // namespace fabric::softhca
