// The control socket of the hardware process: PATH.ctl, SOCK_STREAM, one JSON object a line each way. For
// fabric-lab and for tests; programs on the lab's hosts never see it.
//
// Every answer has "ok": true, or "ok": false and "error", a sentence. Requests have "op":
//
//   status                         {"hosts": [...], "cables": [...]}, see below
//   cut     a b [silent]           takes the light from a cable. Silent: both ends still see a link and
//                                  everything vanishes (a broken transceiver, a hung far end)
//   mend    a b                    undoes cut and block
//   block   from [on] | a b [on]   one-way cable: what END (or a to b) sends vanishes, the other direction
//                                  works (one broken fibre of two, with the link held up); "on": false ends
//                                  it
//   plug    a b                    a new cable between two ENDs; what was plugged in there is taken out
//   unplug  end                    takes out a cable
//   power   host on [silent]       switches a host's adapters and software off or on. Off: its clients are
//                                  disconnected. Silent: the neighbours' ports stay up until it is on again
//   flap    end [ms] | a b [ms]    the link goes down, and comes back after ms (default 0)
//   remove  host [hca]             takes the adapter out of the host: IBV_EVENT_DEVICE_FATAL, all that is
//   open
//                                  on it is dead for good, settings gone; its cables stay plugged into it
//   insert  host [hca]             puts it in again
//   reset   host [hca] [ms]        the adapter fails, and its driver starts it anew after ms (default 0):
//                                  remove and insert
//   faults  end | a b, and [delay_us] [rate_mbps] [loss_ppm] [corrupt_ppm] [mad_corrupt_ppm]
//                                  of what END sends, or of both ends of a cable, from now on; what is not
//                                  given becomes 0. corrupt: the CRC is wrong at the other end (a dirty
//                                  connector); mad_corrupt: MADs with wrong content and a right CRC (faulty
//                                  firmware at the other end)
//   trap    end number             makes the port send trap 129 (link integrity), 130 (buffer overrun) or 131
//                                  (flow control watchdog) and count what it stands for
//   describe host [hca] text       what rdma-ndd would write to node_desc
//
// END is HOST/PORT or HOST/HCA/PORT. `a` and `b` of cut and mend may be host names too; then they mean the
// first cable from a port of a to a port of b, as the lab file lists it, or else the first from b to a.
//
// status: a host is {"name", "powered", "clients": [{"id", "pid"}], "hcas": [{"name", "present",
// "node_guid", "description", "ports": [{"end", "guid", "state": "Down|Init|Armed|Active", "physical", "lid",
// "lmc", "sm_lid", "prefix", "issm", "carrier", "peer": END or null, "counters": {...}}]}]}; a cable is {"a",
// "b", "state": "up|down|cut|silent", "blocked": [END...], "faults": {END: {...}}}. GUIDs and prefixes are
// strings "0x...".
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "verbs/softhca/model.hpp"

namespace fabric::softhca {

struct ConnectedClient {
  ClientId id;
  pid_t pid;
  unsigned host;  ///< index
};

/// Executes one request line and returns the answer line, without its end. `disconnect` is told which host
/// has been switched off.
std::string execute_control(std::string_view line, Model& model, TimePoint now,
                            const std::vector<ConnectedClient>& clients,
                            const std::function<void(unsigned host)>& disconnect);

}  // namespace fabric::softhca
