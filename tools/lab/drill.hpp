// The drill: traffic over a cable or through a host, a fault, its repair, and what became of the traffic.
//
// UDP probes with sequence numbers go at a given rate between hosts whose shortest way crosses what will
// fail, in both directions, beside a TCP stream. Each run waits for what it needs, never for a time: until
// traffic takes the short way; fault; until it takes the other way and probes sent after the fault arrive;
// repair; until it takes the short way again; until everything sent has arrived or nothing comes any more. A
// run counts from its first probe to its last, so what the repair loses counts too.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tools/lab/lab.hpp"

namespace fabric::tools::lab {

struct DrillOptions {
  enum class Kind : std::uint8_t {
    cable,  ///< is cut, and mended
    host,   ///< a transit host loses its power, and gets it back
    drain,  ///< a transit host is drained, switched off, switched on and undrained
  } kind = Kind::cable;
  bool silent = false;
  unsigned runs = 10;
  unsigned rate = 10000;  ///< probes a second, of all flows together
};

struct DrillRun {
  std::string fault;  ///< "h1/2 - h2/1", "h3"
  std::uint64_t sent = 0, lost = 0, duplicated = 0, reordered = 0;
  double gap_ms = 0;            ///< longest, of all flows
  std::string detector;         ///< of whoever noticed first; empty if nobody says
  std::uint64_t tcp_bytes = 0;  ///< delivered, content checked
  /// What a host that died had acknowledged and not passed on, of probes and stream together, by its
  /// neighbours' counters.
  std::uint64_t held = 0;
  /// What forwarders have dropped, by their own counters, duplicates apart. Reason to frames.
  std::map<std::string, std::uint64_t> dropped;
};

struct DrillResult {
  DrillOptions options;
  std::vector<DrillRun> runs;
  [[nodiscard]] std::string to_json() const;
  [[nodiscard]] std::string to_text() const;
};

/// Of `lost` probes those that nothing explains: neither what a dead host held nor what forwarders dropped.
[[nodiscard]] std::uint64_t unexplained(const DrillRun& run);

/// Runs the drill on a lab that is up. `progress` is called after each run. Throws Error when the lab has
/// nothing to fail without parting it, when something does not recover within 30 s, or when the TCP stream
/// delivers anything but what was sent.
DrillResult drill(const Lab& lab, const DrillOptions& options,
                  const std::function<void(const DrillRun&)>& progress);

}  // namespace fabric::tools::lab
