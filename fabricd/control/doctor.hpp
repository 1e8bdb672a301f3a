// `fabricctl doctor`: what is wrong, how that shows, and what to do.
//
// Everything that the daemon knows is put into one plain value, Evidence, twice a second apart for what
// counts up; diagnose() is a pure function of it. So every finding can be had in a unit test without breaking
// anything.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "routing/node.hpp"

namespace fabric::daemon {

class Host;

struct Finding {
  enum class Level : std::uint8_t {
    note,     ///< worth knowing; nothing has to be done
    warning,  ///< the fabric works, but less well than it could, or one failure away from not working
    error,    ///< something does not work
  } level = Level::warning;
  std::string check;     ///< stable word
  std::string text;      ///< what is wrong
  std::string evidence;  ///< how that shows
  std::string advice;    ///< what to do
};

struct Evidence {
  struct Cable {
    unsigned port = 0;  ///< as people count
    std::string name;   ///< "mlx5_0/1"
    std::string phase;  ///< as `fabricctl cable` shows it
    std::string reason;
    bool connected = false;
    bool damped = false;
    std::uint64_t times_up = 0;
    double seconds = 0;        ///< of being connected, or of not being
    unsigned lost_lately = 0;  ///< times in the last ten minutes
    std::string last_detector, last_reason;
    std::string slow_link;  ///< in words, where the link could be faster
  };
  std::string self;
  std::vector<Cable> cables;             ///< of this host
  std::vector<routing::HostView> hosts;  ///< of the fabric
  std::vector<routing::CableView> map;
  routing::NodeView node;
  std::vector<std::string> problems;                   ///< Host::problems()
  std::map<std::string, std::uint64_t> before, after;  ///< the forwarder's counters
  double interval = 1;                                 ///< seconds between the two
  std::map<std::string, std::string> texts;            ///< what they mean
  unsigned slept_lately = 0;                           ///< times that this host did not run, in ten minutes
  std::vector<std::string> overlaps;    ///< "eth0 has 10.88.0.7/16": addresses in the fabric's networks
  std::uint64_t memory_lock = ~0ull;    ///< RLIMIT_MEMLOCK where it binds, in bytes
  std::uint64_t memory_registered = 0;  ///< bytes of the buffers of one adapter
  std::string offloads;                 ///< of the network interface, as Forwarder::device_offloads()
};

/// Errors first.
std::vector<Finding> diagnose(const Evidence& evidence);

/// What one failure would cut off: a sentence for each host and cable that nothing replaces.
std::vector<std::string> single_points_of_failure(const std::vector<routing::HostView>& hosts,
                                                  const std::vector<routing::CableView>& cables);

/// Everything but what has to be watched for a time (`before`, `interval`).
Evidence gather(Host& host);

boost::json::object to_json(const std::vector<Finding>& findings);

}  // namespace fabric::daemon
