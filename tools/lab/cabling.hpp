// The usual shapes of a lab, and what can be said about one without running it. The description itself, and
// its file format, are the hardware's (verbs/softhca/lab_file.hpp).
#pragma once

#include <optional>
#include <string>

#include "verbs/softhca/lab_file.hpp"

namespace fabric::tools::lab {

using softhca::LabDescription;

inline constexpr unsigned kMaxHosts = 250;

/// hosts h1..hN with one dual-port adapter each; cable hK port 2 to hK+1 port 1, and hN port 2 to h1 port 1.
/// A ring of two has two cables between the pair, a ring of one a cable to itself. Throws Error outside of
/// 1..kMaxHosts.
LabDescription ring(unsigned hosts);
/// A ring without its last cable.
LabDescription chain(unsigned hosts);
/// In the lab's file format.
std::string to_json(const LabDescription& lab);

/// Cables on the shortest way between two hosts, by index, without one cable or one host on the way; nothing
/// where there is no way.
std::optional<unsigned> distance(const LabDescription& lab, unsigned from, unsigned to,
                                 std::optional<unsigned> without_cable = std::nullopt,
                                 std::optional<unsigned> without_host = std::nullopt);

}  // namespace fabric::tools::lab
