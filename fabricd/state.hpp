// What must survive a restart: the agreed LIDs, and how often this daemon has been started.
//
// One JSON file, state.json, in the state directory. It is replaced as a whole (temporary file, fsync,
// rename, fsync of the directory), so that after a power cut there is the old one or the new one. A daemon
// that cannot read or write it goes on without: its neighbours know the LIDs too.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string_view>

#include "routing/node.hpp"

namespace fabric::daemon {

struct State {
  /// Counts up by one each start; the very first, and the first without a readable file, takes it from the
  /// clock (next_start()).
  std::uint32_t starts = 0;
  routing::LidTable lids;
  bool drained = false;  ///< `fabricctl drain` holds until `undrain`, over restarts
};

/// A sentence for the log; whoever catches it goes on.
class StateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class StateDirectory {
 public:
  explicit StateDirectory(std::filesystem::path directory) : directory_(std::move(directory)) {}

  /// The last saved state; an empty one if there never was one. Throws StateError if it cannot be read or
  /// is not what save() writes; a file of the latter kind is kept aside as state.json.bad.
  [[nodiscard]] State load() const;

  /// Makes the directory if it is missing. Throws StateError; what was saved before is then still there.
  void save(const State& state) const;

 private:
  std::filesystem::path directory_;
};

/// The number of a start after the last one that is known (0: none is). It must be above whatever this host
/// has used before, also when that was lost with the disk: neighbours believe the higher one. Then it is
/// quarters of a second since 2020, which 32 bits hold for 34 years, and which no host outruns by restarting.
/// Where the clock is wrong as well, routing::Node learns from its neighbours' memory of it.
[[nodiscard]] std::uint32_t next_start(std::uint32_t last, std::chrono::system_clock::time_point now);

/// The codec of the file, apart from it for tests and fuzzing. Throws std::exception if `text` is not a
/// state.
State decode_state(std::string_view text);
std::string encode_state(const State& state);

}  // namespace fabric::daemon
