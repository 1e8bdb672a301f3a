// The gateway drill: traffic from the LAN to a guest in the ring and from there to the world beyond the LAN,
// a fault of the host that serves the gateway, its repair, and what became of the traffic.
//
// As in the other drill (drill.hpp), a run waits for conditions, never for times: the preferred host serves
// and traffic goes both ways; fault; the other one serves and probes sent after the fault arrive; repair; the
// preferred one serves again and probes sent after that arrive. The outage of a direction is the longest gap
// between arrivals from the fault to the repair; what the repair and the way back cost is counted apart.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/lab/lab.hpp"

namespace fabric::tools::lab {

struct GatewayDrillOptions {
  /// "kill": the host dies without a port event; "cut": its LAN cable; "silent": its LAN port drops
  /// everything and keeps its carrier; "handover": asked for with fabricctl. Taken in turn.
  std::vector<std::string> faults{"kill", "cut", "silent", "handover"};
  unsigned runs = 10;
  unsigned rate = 1000;  ///< probes a second, each way
};

struct GatewayDrillRun {
  std::string fault;   ///< of GatewayDrillOptions::faults
  std::string served;  ///< by whom, before the fault
  struct Direction {
    std::uint64_t sent = 0, lost = 0, lost_after_repair = 0;
    double gap_ms = 0, gap_after_repair_ms = 0;
  };
  Direction from_lan, to_lan;
};

struct GatewayDrillResult {
  std::vector<GatewayDrillRun> runs;
  [[nodiscard]] std::string to_json() const;
  [[nodiscard]] std::string to_text() const;
};

/// Runs the drill on a lab with a LAN that is up. Throws Error where something does not recover in time.
GatewayDrillResult drill_gateway(const Lab& lab, const GatewayDrillOptions& options,
                                 const std::function<void(const GatewayDrillRun&)>& progress);

}  // namespace fabric::tools::lab
