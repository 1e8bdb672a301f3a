// The daemon's life: start, wait for an adapter, run until a signal, leave nothing behind.
#pragma once

#include <string>

#include "fabricd/configuration.hpp"

namespace fabric::daemon {

struct DaemonOptions {
  Configuration configuration;
  std::string state_directory = "/var/lib/fabricd";
  std::string socket = "/run/fabricd/fabricd.sock";
};

/// Runs until SIGTERM or SIGINT. Throws std::runtime_error with a sentence that says what to do.
void run_daemon(const DaemonOptions& options);

}  // namespace fabric::daemon
