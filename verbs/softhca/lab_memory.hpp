// The part of the lab's shared memory that describes ports. One memfd per lab, made by the hardware process
// and passed to every client over its socket; it has no name, so nothing is left behind. Offsets only, never
// pointers: every process maps it where it likes. The hardware process alone writes here, except for the
// traffic counters.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fabric::softhca {

inline constexpr std::uint32_t kMaxPorts = 1024;  ///< of all hosts of a lab
inline constexpr std::uint32_t kNoSharedPort = 0xFFFFFFFF;
inline constexpr unsigned kMaxPkeys = 32;
inline constexpr unsigned kMaxGids = 16;

/// Traffic and error counters as PMA reports them; whoever moves the data counts it. Data in octets (PMA
/// divides by 4).
struct SharedCounters {
  std::atomic<std::uint64_t> xmit_data, rcv_data, xmit_packets, rcv_packets;
  std::atomic<std::uint64_t> unicast_xmit_packets, unicast_rcv_packets, multicast_xmit_packets,
      multicast_rcv_packets;
  std::atomic<std::uint64_t> symbol_errors, link_error_recovery, link_downed, rcv_errors,
      rcv_remote_phys_errors;
  std::atomic<std::uint64_t> rcv_switch_relay_errors, xmit_discards, xmit_constraint_errors,
      rcv_constraint_errors;
  std::atomic<std::uint64_t> local_link_integrity_errors, excessive_buffer_overruns, vl15_dropped, xmit_wait;
};

struct SharedPort {
  std::atomic<std::uint32_t> in_use;
  std::uint32_t host;    ///< number of the host in the lab, from 1
  std::uint32_t device;  ///< number of the HCA in the host, from 0
  std::uint32_t number;  ///< port number of the HCA, from 1
  std::uint64_t guid;    ///< port GUID, host byte order
  /// Of its adapter, the same for all its ports: 0 while it is not in the host, otherwise another number each
  /// time that it has been put in or has failed. What was made during another insertion is dead.
  std::atomic<std::uint32_t> insertion;

  // What the SMA has been told. `change` is odd while the group is being written (a seqlock) and +2 after
  // each change.
  std::atomic<std::uint32_t> change;
  std::atomic<std::uint32_t> state;       ///< IBV_PORT_DOWN, INIT, ARMED, ACTIVE
  std::atomic<std::uint32_t> phys_state;  ///< 2 polling, 3 disabled, 5 link up
  std::atomic<std::uint32_t> lid, lmc, sm_lid, sm_sl, subnet_timeout;
  std::atomic<std::uint64_t> gid_prefix;
  std::atomic<std::uint32_t> active_mtu, max_mtu;  ///< enum ibv_mtu
  std::atomic<std::uint32_t> active_width, active_speed, cap_mask, max_vls, init_type_reply;
  std::array<std::atomic<std::uint16_t>, kMaxPkeys> pkeys;
  std::array<std::atomic<std::uint64_t>, kMaxGids> guids;  ///< GID index -> interface id; [0] is `guid`
  std::atomic<std::uint32_t> pkey_violations, qkey_violations;

  // The cable.
  std::atomic<std::uint32_t>
      peer;  ///< index of the port at the other end, kNoSharedPort where nothing is plugged in
  std::atomic<std::uint32_t>
      carrier;  ///< 0: what this port sends vanishes (cut, silent cut, one-way cable, power off)
  std::atomic<std::uint64_t> carrier_epoch;  ///< +1 whenever carrier becomes 0: what was in flight is lost
  std::atomic<std::uint64_t> delay_ns;       ///< one way, on top of what the machine takes
  std::atomic<std::uint64_t> rate_limit;     ///< bit/s, 0 none
  std::atomic<std::uint32_t> loss_ppm, corrupt_ppm;  ///< of packets sent by this port

  alignas(64) SharedCounters counters;  ///< written by every message, away from what every message reads
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

/// A process that has opened the software HCA, from 1, never used twice in the life of a lab.
using ClientId = std::uint32_t;

struct LabHeader {
  std::uint64_t magic;    ///< kLabMagic
  std::uint32_t version;  ///< kLabVersion; a library and a hardware process of different builds do not mix
  std::uint32_t ports;    ///< entries of the port table that are in use, from [0] on
  std::uint64_t size;     ///< bytes of the whole memfd
  std::uint64_t verbs_offset, verbs_size;  ///< the area of verbs_memory.hpp
  std::uint64_t seed;                      ///< for whoever plays chance
};
inline constexpr std::uint64_t kLabMagic = 0x534F465448434131;  // "SOFTHCA1"
inline constexpr std::uint32_t kLabVersion = 2;

/// What lies at offset 0 of the memfd.
struct LabMemory {
  LabHeader header;
  std::array<SharedPort, kMaxPorts> ports;
};

/// Where the area of verbs_memory.hpp begins: page aligned, whatever the page size.
inline constexpr std::size_t kVerbsOffset = (sizeof(LabMemory) + 0xFFFF) & ~std::size_t{0xFFFF};

}  // namespace fabric::softhca
