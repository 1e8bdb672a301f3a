// fabricctl's command line, from words to exit status.
#pragma once

#include <string>
#include <vector>

namespace fabric::tools {

inline constexpr int kDone = 0, kFailed = 1, kUsage = 2, kNoDaemon = 3;

/// Runs `fabricctl ARGUMENTS`; prints to stdout and stderr. Returns the exit status.
int run_fabricctl(const std::vector<std::string>& arguments);

}  // namespace fabric::tools
