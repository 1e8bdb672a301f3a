#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fabric::tools::lab {

/// What the user is told: a sentence, with what to do about it where that is known.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// `what`, and what the system says about errno.
[[noreturn]] inline void throw_system_error(const std::string& what) {
  throw Error(what + ": " + std::strerror(errno));
}

}  // namespace fabric::tools::lab
