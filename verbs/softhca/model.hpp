// The hardware of a lab as a value: HCAs, ports, cables, and the agents in their firmware. See model.cpp.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "verbs/softhca/lab_file.hpp"
#include "verbs/softhca/lab_memory.hpp"
#include "verbs/softhca/packet.hpp"
#include "words/words.hpp"

namespace fabric::softhca {

/// Index of a port in the lab: of Model::ports and of LabMemory::ports.
using PortNumber = std::uint32_t;

inline constexpr std::uint32_t kVendorId = 0x001405;
inline constexpr std::uint32_t kPartId = 0x5348;
inline constexpr std::uint32_t kHardwareVersion = 0xA0;

inline constexpr std::uint8_t kAllWidths = 1 | 2;      ///< 1x, 4x
inline constexpr std::uint8_t kAllSpeeds = 1 | 2 | 4;  ///< SDR, DDR, QDR
inline constexpr std::uint8_t kAllExtSpeeds = 1 | 2;   ///< FDR, EDR

/// PortPhysicalState of PortInfo.
enum class PhysState : std::uint8_t { sleep = 1, polling = 2, disabled = 3, link_up = 5 };

/// What is wrong with what a port sends, besides what is wrong with the cable.
struct PortFaults {
  std::uint64_t delay_ns = 0;
  std::uint64_t rate_limit = 0;       ///< bit/s, 0 none
  std::uint32_t loss_ppm = 0;         ///< packets that vanish
  std::uint32_t corrupt_ppm = 0;      ///< packets whose CRC does not match at the other end
  std::uint32_t mad_corrupt_ppm = 0;  ///< MADs that arrive with wrong content and a right CRC
};

/// A trap that is sent again and again until somebody represses it.
struct PendingTrap {
  std::uint16_t number = 0;
  std::uint64_t transaction = 0;
  std::array<std::uint8_t, 64> notice{};
};

struct ModelPort {
  CableEnd place;
  std::optional<unsigned> cable;  ///< index into Model's cables
  PhysState phys = PhysState::polling;
  PortFaults faults;
  bool held_down = false;  ///< a flap is under way
  unsigned issm_holders = 0;

  // PortInfo, as far as SharedPort has no room for it.
  std::uint64_t mkey = 0;
  std::uint8_t mkey_protect = 0;
  std::uint16_t mkey_lease = 0;  ///< seconds
  std::uint16_t mkey_violations = 0;
  std::uint64_t lease_running = 0;  ///< not zero: number of the countdown under way
  std::uint8_t width_enabled = 0, speed_enabled = 0, speed_ext_enabled = 0;
  std::uint8_t speed_active = 0, speed_ext_active = 0;
  PhysState link_down_default = PhysState::polling;
  std::uint8_t operational_vls = 0, vl_high_limit = 0;
  std::uint8_t local_phy_errors = 0, overrun_errors = 0;
  bool mcast_pkey_trap_suppression = false;
  std::array<std::uint8_t, 8> sl_to_vl{};
  std::array<std::uint8_t, 64> vl_arbitration_low{}, vl_arbitration_high{};

  std::uint64_t next_trap_transaction = 1;
  std::vector<PendingTrap> traps;

  TimePoint wire_free{};  ///< when what is being sent has left, under a rate limit

  // What PMA subtracts: counters are cleared by remembering where they were.
  std::array<std::uint64_t, 17> counters_base{}, extended_base{};
};

struct ModelHca {
  std::uint64_t node_guid = 0;
  std::string description;
  std::vector<PortNumber> ports;
};

struct ModelHost {
  std::string name;
  std::vector<ModelHca> hcas;
  bool powered = true;
  bool silent_death = false;  ///< off, and the neighbours have not noticed
};

struct ModelCable {
  PortNumber a = 0, b = 0;
  bool cut = false;
  bool silent = false;                          ///< of a cut: both ends still see the link
  bool blocked_ab = false, blocked_ba = false;  ///< one-way: what goes this way vanishes
};

class Model {
 public:
  /// Where things go that leave the hardware.
  class Surroundings {
   public:
    virtual ~Surroundings() = default;
    virtual void port_event(PortNumber port, ibv_event_type event) = 0;
    /// The adapter has been taken out, or has failed: IBV_EVENT_DEVICE_FATAL, and all that is open on it
    /// dies.
    virtual void adapter_removed(unsigned host, unsigned hca) = 0;
    /// The adapter is there, or is there again.
    virtual void adapter_inserted(unsigned host, unsigned hca) = 0;
    /// A MAD that the firmware does not answer: for the software of that host.
    virtual void received(PortNumber port, const Packet& packet) = 0;
    /// The traffic counters are about to be read: whoever has counted elsewhere brings them up to date.
    virtual void counters_wanted() {}
  };

  /// `memory` is zeroed; the model fills in the port table and is its only writer.
  Model(LabDescription lab, LabMemory& memory, std::uint64_t seed, Surroundings& surroundings);

  // Time. All calls give the present time; it must not go back.

  /// Does what is due. Must be called when next_timer() has come.
  void run(TimePoint now);
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

  // What the software of a host does.

  /// A MAD leaves through a port. It is gone where the port cannot send it: no error, as in hardware.
  void transmit(TimePoint now, PortNumber port, Packet packet);
  /// Sends `mad` back where `request`, which came in on `port`, came from.
  void answer(TimePoint now, PortNumber port, const Packet& request, const Mad& mad);
  void hold_issm(TimePoint now, PortNumber port, int change);
  void describe_node(TimePoint now, unsigned host, unsigned hca, const std::string& description);

  // Faults. Cables are named by one end.

  void cut(TimePoint now, unsigned cable, bool silent);
  void mend(TimePoint now, unsigned cable);
  /// Everything that `from` sends into its cable vanishes, or no longer does.
  void block(TimePoint now, PortNumber from, bool blocked);
  void plug(TimePoint now, PortNumber a,
            PortNumber b);  ///< takes out what is in there first; a == b is an error
  void unplug(TimePoint now, PortNumber end);
  void set_power(TimePoint now, unsigned host, bool on, bool silent);
  /// The link goes down, and comes back after `length`.
  void flap(TimePoint now, PortNumber port, Duration length);
  /// Takes an adapter out of the host; its cables stay plugged into it.
  void remove_hca(TimePoint now, unsigned host, unsigned hca);
  void insert_hca(TimePoint now, unsigned host, unsigned hca);
  /// It fails, and its driver starts it anew after `length`.
  void reset_hca(TimePoint now, unsigned host, unsigned hca, Duration length);
  void set_faults(PortNumber port, const PortFaults& faults);
  /// A data packet whose P_Key (trap 257) or Q_Key (258) did not match at `port`: counted, and told.
  void key_violation(TimePoint now, PortNumber port, std::uint16_t trap, const KeyViolation& violation);
  /// Something the link layer would count; thresholds send traps 129 and 130.
  void raise_error_counter(TimePoint now, PortNumber port, std::uint16_t trap);

  // Looking.

  [[nodiscard]] const LabDescription& lab() const { return lab_; }
  [[nodiscard]] const std::vector<ModelHost>& hosts() const { return hosts_; }
  [[nodiscard]] const std::vector<ModelCable>& cables() const { return cables_; }
  [[nodiscard]] const ModelPort& port(PortNumber number) const { return ports_[number]; }
  [[nodiscard]] const SharedPort& shared(PortNumber number) const { return memory_.ports[number]; }
  [[nodiscard]] PortNumber port_at(const CableEnd& end) const;
  [[nodiscard]] std::size_t port_count() const { return ports_.size(); }

 private:
  struct Timer {
    TimePoint at;
    std::uint64_t order;
    std::function<void(TimePoint)> action;
    bool operator>(const Timer& other) const { return std::tie(at, order) > std::tie(other.at, other.order); }
  };

  // model.cpp: links
  SharedPort& memory(PortNumber number) { return memory_.ports[number]; }
  ModelHca& hca_of(PortNumber number);
  ModelHost& host_of(PortNumber number) { return hosts_[ports_[number].place.host]; }
  [[nodiscard]] PortNumber peer_of(PortNumber number) const;
  void reset_port(PortNumber number);
  void power_off(ModelHost& host, unsigned hca);
  /// Its host has power, and its adapter is there.
  [[nodiscard]] bool works(PortNumber number) const;
  [[nodiscard]] bool sees_link(PortNumber number) const;
  [[nodiscard]] bool has_carrier(PortNumber number) const;
  void settle(TimePoint now);
  void link_down(TimePoint now, PortNumber number);
  void link_up(TimePoint now, PortNumber number);
  void enter(PortNumber number, ibv_port_state state);
  void after(TimePoint at, std::function<void(TimePoint)> action);
  bool chance(std::uint32_t ppm);

  // model.cpp: packets
  void send_on_wire(TimePoint now, PortNumber from, Packet packet);
  void arrive(TimePoint now, PortNumber port, Packet packet, bool from_wire);
  void receive_smp(TimePoint now, PortNumber port, Packet packet);
  void receive_gmp(TimePoint now, PortNumber port, Packet packet);

  // sma.cpp
  /// True where the MAD was for the SMA; `reply` is then what to send back, if anything.
  bool handle_smp(TimePoint now, PortNumber port, const Packet& packet, std::optional<Mad>& reply);
  bool check_mkey(TimePoint now, PortNumber port, const Packet& packet);
  std::uint16_t node_info(PortNumber port, Mad& mad);
  std::uint16_t port_info(TimePoint now, PortNumber port, bool set, Mad& mad, bool mkey_matches);
  std::uint16_t set_port_info(TimePoint now, PortNumber port, const Mad& request);
  std::uint16_t guid_info(PortNumber port, bool set, Mad& mad);
  std::uint16_t pkey_table(PortNumber port, bool set, Mad& mad);
  std::uint16_t sl_to_vl(PortNumber port, bool set, Mad& mad);
  std::uint16_t vl_arbitration(PortNumber port, bool set, Mad& mad);
  void send_trap(TimePoint now, PortNumber port, std::uint16_t number,
                 const std::array<std::uint8_t, 54>& details);
  void repeat_trap(TimePoint now, PortNumber port, std::uint64_t transaction);
  void trap_local_change(TimePoint now, PortNumber port, std::uint8_t flags);
  void update_capabilities(TimePoint now, PortNumber port);

  // pma.cpp
  bool handle_gmp(PortNumber port, const Packet& packet, std::optional<Mad>& reply);

  LabDescription lab_;
  LabMemory& memory_;
  Surroundings& surroundings_;
  std::mt19937_64 random_;
  std::vector<ModelHost> hosts_;
  std::vector<ModelPort> ports_;
  std::vector<ModelCable> cables_;
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_;
  std::uint64_t timer_order_ = 0;
  std::uint64_t next_lease_ = 1;
  std::uint32_t insertions_ = 1;
};

}  // namespace fabric::softhca
