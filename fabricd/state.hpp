// What must survive a restart: the agreed LIDs, and how often this daemon has been started.
//
// One JSON file, state.json, in the state directory. It is replaced as a whole (temporary file, fsync,
// rename, fsync of the directory), so that after a power cut there is the old one or the new one. A daemon
// that cannot read or write it goes on without: its neighbours know the LIDs too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string_view>

#include "routing/node.hpp"

namespace fabric::daemon {

struct State {
  std::uint32_t starts = 0;  ///< counts up by one each start
  routing::LidTable lids;
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

/// The codec of the file, apart from it for tests and fuzzing. Throws std::exception if `text` is not a
/// state.
State decode_state(std::string_view text);
std::string encode_state(const State& state);

}  // namespace fabric::daemon
