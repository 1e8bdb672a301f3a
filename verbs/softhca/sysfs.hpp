// What the kernel shows of an adapter under /sys/class/infiniband, for programs and scripts that read it
// there.
//
// The hardware process makes a tree of empty files, PATH.sys/HOST, so that directories can be listed, tested
// and entered; the library sends such paths there and, when a file is opened, hands out its present contents.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "verbs/softhca/lab_memory.hpp"

namespace fabric::softhca {

inline constexpr std::string_view kSysfs = "/sys/class/infiniband";

inline constexpr std::array kHcaFiles = {"node_type", "fw_ver",    "hw_rev",        "hca_type",
                                         "board_id",  "node_guid", "sys_image_guid"};
inline constexpr std::array kPortFiles = {"lid",        "lid_mask_count", "sm_lid",   "sm_sl",     "state",
                                          "phys_state", "rate",           "cap_mask", "link_layer"};
struct CounterFile {
  const char* name;
  std::atomic<std::uint64_t> SharedCounters::*source;
  unsigned divisor = 1;  ///< data is shown in units of four octets
};
inline constexpr std::array kCounterFiles = std::to_array<CounterFile>({
    {"symbol_error", &SharedCounters::symbol_errors},
    {"link_error_recovery", &SharedCounters::link_error_recovery},
    {"link_downed", &SharedCounters::link_downed},
    {"port_rcv_errors", &SharedCounters::rcv_errors},
    {"port_rcv_remote_physical_errors", &SharedCounters::rcv_remote_phys_errors},
    {"port_rcv_switch_relay_errors", &SharedCounters::rcv_switch_relay_errors},
    {"port_xmit_discards", &SharedCounters::xmit_discards},
    {"port_xmit_constraint_errors", &SharedCounters::xmit_constraint_errors},
    {"port_rcv_constraint_errors", &SharedCounters::rcv_constraint_errors},
    {"local_link_integrity_errors", &SharedCounters::local_link_integrity_errors},
    {"excessive_buffer_overrun_errors", &SharedCounters::excessive_buffer_overruns},
    {"VL15_dropped", &SharedCounters::vl15_dropped},
    {"port_xmit_data", &SharedCounters::xmit_data, 4},
    {"port_rcv_data", &SharedCounters::rcv_data, 4},
    {"port_xmit_packets", &SharedCounters::xmit_packets},
    {"port_rcv_packets", &SharedCounters::rcv_packets},
    {"port_xmit_wait", &SharedCounters::xmit_wait},
    {"unicast_xmit_packets", &SharedCounters::unicast_xmit_packets},
    {"unicast_rcv_packets", &SharedCounters::unicast_rcv_packets},
    {"multicast_xmit_packets", &SharedCounters::multicast_xmit_packets},
    {"multicast_rcv_packets", &SharedCounters::multicast_rcv_packets},
});

/// The contents of the file at `path`, counted from kSysfs ("/softhca0/ports/1/state"); nothing where there
/// is no such file or no lab. Library side.
std::optional<std::string> sysfs_contents(std::string_view path);

/// Gb/s, lanes times speed, of an enum ibv_port_attr width and speed.
double link_rate(std::uint32_t width, std::uint32_t speed);

}  // namespace fabric::softhca
