// The hardware of a lab: HCAs, ports, cables and the agents in the firmware, without sockets and without a
// clock. The hardware process (hardware.cpp) drives it with real time and real clients; unit tests drive it
// with neither.
//
//   model.cpp   cables and links, power, faults, how packets to QP0 and QP1 travel
//   sma.cpp     the subnet management agent of a port, and its traps
//   pma.cpp     the performance management agent of a port
//
// Single-threaded. What other processes have to see of a port is in LabMemory::ports, which the model alone
// writes (except for the traffic counters, which whoever moves data adds to); the rest is in ModelPort. All
// chance comes from one seeded generator, and timers that are due at the same time run in the order in which
// they were set, so a run can be repeated.
//
// Specification: InfiniBand Architecture volume 1, release 1.3: 7.2.7 (port states), 14.2 (SMPs, directed
// routes), 14.2.4 (M_Key), 14.2.5 (attributes), 14.3 (traps), 16.1 (performance management).
//
// Departures. Link training takes no time. Serial data and symbols do not exist, so error counters count
// what the fault commands cause. VL15 has no buffer limit. A HCA has no port 0 and forwards nothing, so of
// the rules for directed routes (14.2.2) those for switches are absent: what would need forwarding is
// discarded.
#include "verbs/softhca/model.hpp"

#include <algorithm>
#include <cstring>

#include "verbs/softhca/mad_layout.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint32_t kCapabilities =
    kIsTrapSupported | kIsSlMappingSupported | kIsSystemImageGuidSupported | kIsExtendedSpeedsSupported |
    kIsVendorClassSupported | kIsCapabilityMaskNoticeSupported | kIsClientReregistrationSupported |
    kIsOtherLocalChangesNoticeSupported;

std::uint8_t highest(std::uint8_t mask) {
  std::uint8_t bit = 0x80;
  while (bit != 0 && (mask & bit) == 0) bit >>= 1;
  return bit;
}

// Directed routes (14.2.2) as a HCA has to treat them. What an SMP does next at a port of number `port`.
enum class Smi { discard, wire, here };

// On its way out of the port: C14-9 for requests, C14-13 for responses.
Smi leave_directed(std::uint8_t port, Mad& mad) {
  std::uint8_t& pointer = mad[kHopPointer];
  const std::uint8_t count = mad[kHopCount];
  if (count > kMaxHops) return Smi::discard;
  if ((mad[kStatus] & kDirectionBit) == 0) {
    if (count != 0 && pointer == 0) {
      pointer = 1;
      return mad[kInitialPath + 1] == port ? Smi::wire : Smi::discard;
    }
    if (pointer == count) {
      ++pointer;
      return load16(mad, kDrDlid) == kPermissiveLid ? Smi::here : Smi::discard;
    }
    return Smi::discard;
  }
  if (count != 0 && pointer == count + 1) {
    --pointer;
    return mad[kReturnPath + pointer] == port ? Smi::wire : Smi::discard;
  }
  if (count == 0 && pointer == 1) {
    pointer = 0;
    return load16(mad, kDrSlid) == kPermissiveLid ? Smi::here : Smi::discard;
  }
  return Smi::discard;
}

// On its way in from the cable.
Smi enter_directed(std::uint8_t port, Mad& mad) {
  std::uint8_t& pointer = mad[kHopPointer];
  const std::uint8_t count = mad[kHopCount];
  if (count > kMaxHops) return Smi::discard;
  if ((mad[kStatus] & kDirectionBit) == 0) {
    if (pointer != count || load16(mad, kDrDlid) != kPermissiveLid) return Smi::discard;
    if (count != 0) mad[kReturnPath + pointer] = port;
    ++pointer;
    return Smi::here;
  }
  if (pointer != 1 || load16(mad, kDrSlid) != kPermissiveLid) return Smi::discard;
  pointer = 0;
  return Smi::here;
}

}  // namespace

Model::Model(LabDescription lab, LabMemory& memory, std::uint64_t seed, Surroundings& surroundings)
    : lab_(std::move(lab)), memory_(memory), surroundings_(surroundings), random_(seed) {
  for (unsigned h = 0; h < lab_.hosts.size(); ++h) {
    ModelHost& host = hosts_.emplace_back();
    host.name = lab_.hosts[h].name;
    for (unsigned d = 0; d < lab_.hosts[h].hcas.size(); ++d) {
      ModelHca& hca = host.hcas.emplace_back();
      hca.node_guid = std::uint64_t{kVendorId} << 40 | std::uint64_t{h + 1} << 16 | std::uint64_t{d} << 8;
      hca.description = host.name + " softhca" + std::to_string(d);
      for (unsigned p = 1; p <= lab_.hosts[h].hcas[d]; ++p) {
        const auto number = static_cast<PortNumber>(ports_.size());
        hca.ports.push_back(number);
        ports_.emplace_back().place = {h, d, p};
        SharedPort& shared = this->memory(number);
        shared.host = h + 1;
        shared.device = d;
        shared.number = p;
        shared.guid = hca.node_guid + p;
        shared.peer = kNoSharedPort;
        shared.max_mtu = IBV_MTU_4096;
        shared.max_vls = kVlCap;
        shared.insertion = 1;
        reset_port(number);
        shared.in_use = 1;
      }
    }
  }
  memory_.header.ports = static_cast<std::uint32_t>(ports_.size());
  memory_.header.seed = seed;
  for (const auto& [a, b] : lab_.cables) plug(TimePoint{}, port_at(a), port_at(b));
}

PortNumber Model::port_at(const CableEnd& end) const {
  return hosts_.at(end.host).hcas.at(end.hca).ports.at(end.port - 1);
}

ModelHca& Model::hca_of(PortNumber number) {
  const CableEnd& place = ports_[number].place;
  return hosts_[place.host].hcas[place.hca];
}

PortNumber Model::peer_of(PortNumber number) const {
  const auto& cable = ports_[number].cable;
  if (!cable) return kNoSharedPort;
  return cables_[*cable].a == number ? cables_[*cable].b : cables_[*cable].a;
}

// --- time ---

void Model::after(TimePoint at, std::function<void(TimePoint)> action) {
  timers_.push({at, timer_order_++, std::move(action)});
}

void Model::run(TimePoint now) {
  while (!timers_.empty() && timers_.top().at <= now) {
    auto action = std::move(const_cast<Timer&>(timers_.top()).action);  // popped before anything compares it
    timers_.pop();
    action(now);
  }
}

std::optional<TimePoint> Model::next_timer() const {
  if (timers_.empty()) return std::nullopt;
  return timers_.top().at;
}

bool Model::chance(std::uint32_t ppm) {
  return ppm != 0 && random_() % 1'000'000 < ppm;
}

// --- links ---

// As after power-on: nobody has configured anything.
void Model::reset_port(PortNumber number) {
  ModelPort& port = ports_[number];
  SharedPort& shared = memory(number);
  PortChange change(shared);
  port.mkey = 0;
  port.mkey_protect = 0;
  port.mkey_lease = 0;
  port.mkey_violations = 0;
  port.lease_running = 0;
  port.width_enabled = kAllWidths;
  port.speed_enabled = kAllSpeeds;
  port.speed_ext_enabled = kAllExtSpeeds;
  port.speed_active = 1;
  port.speed_ext_active = 0;
  port.phys = PhysState::polling;
  port.link_down_default = PhysState::polling;
  port.operational_vls = kVlCap;
  port.vl_high_limit = 0;
  port.local_phy_errors = port.overrun_errors = 15;
  port.mcast_pkey_trap_suppression = false;
  port.sl_to_vl = {};
  port.vl_arbitration_low = {};
  port.vl_arbitration_high = {};
  port.traps.clear();
  shared.state = IBV_PORT_DOWN;
  shared.phys_state = static_cast<std::uint32_t>(PhysState::polling);
  shared.lid = shared.lmc = shared.sm_lid = shared.sm_sl = 0;
  shared.subnet_timeout = 0;
  shared.gid_prefix = kDefaultPrefix;
  shared.active_mtu = shared.max_mtu.load();
  shared.active_width = 2;
  shared.active_speed = 1;
  shared.init_type_reply = 0;
  shared.cap_mask = kCapabilities | (port.issm_holders != 0 ? kIsSm : 0);
  for (auto& pkey : shared.pkeys) pkey = 0;
  shared.pkeys[0] = 0xFFFF;
  for (auto& guid : shared.guids) guid = 0;
  shared.guids[0] = shared.guid;
  shared.pkey_violations = shared.qkey_violations = 0;
}

// The one place where a port changes its logical state (7.2.7). Drivers tell of Down and of Initialize with
// the same event.
void Model::enter(PortNumber number, ibv_port_state state) {
  SharedPort& shared = memory(number);
  {
    PortChange change(shared);
    shared.state = state;
    shared.phys_state = static_cast<std::uint32_t>(ports_[number].phys);
  }
  if (state == IBV_PORT_DOWN || state == IBV_PORT_INIT) {
    surroundings_.port_event(number, IBV_EVENT_PORT_ERR);
  } else if (state == IBV_PORT_ACTIVE) {
    surroundings_.port_event(number, IBV_EVENT_PORT_ACTIVE);
  }
}

bool Model::works(PortNumber number) const {
  return hosts_[ports_[number].place.host].powered && memory_.ports[number].insertion != 0;
}

// Light at both ends, as this end can tell.
bool Model::sees_link(PortNumber number) const {
  const ModelPort& port = ports_[number];
  if (!port.cable || !works(number)) return false;
  const ModelCable& cable = cables_[*port.cable];
  const ModelPort& peer = ports_[peer_of(number)];
  if (cable.cut && !cable.silent) return false;
  if (!works(peer_of(number)) && !hosts_[peer.place.host].silent_death) return false;
  for (const ModelPort* end : {&port, &peer}) {
    if (end->phys == PhysState::disabled || end->phys == PhysState::sleep || end->held_down) return false;
  }
  return (port.width_enabled & peer.width_enabled) != 0 && (port.speed_enabled & peer.speed_enabled) != 0;
}

bool Model::has_carrier(PortNumber number) const {
  const ModelPort& port = ports_[number];
  if (!port.cable || port.phys != PhysState::link_up || !works(number)) return false;
  const ModelCable& cable = cables_[*port.cable];
  const ModelPort& peer = ports_[peer_of(number)];
  return !cable.cut && !(number == cable.a ? cable.blocked_ab : cable.blocked_ba) &&
         peer.phys == PhysState::link_up && works(peer_of(number));
}

void Model::link_up(TimePoint, PortNumber number) {
  ModelPort& port = ports_[number];
  const ModelPort& peer = ports_[peer_of(number)];
  port.phys = PhysState::link_up;
  port.speed_active = highest(port.speed_enabled & peer.speed_enabled);
  port.speed_ext_active = highest(port.speed_ext_enabled & peer.speed_ext_enabled);
  SharedPort& shared = memory(number);
  {
    PortChange change(shared);
    shared.active_width = highest(port.width_enabled & peer.width_enabled);
    // enum ibv_port_attr::active_speed: FDR is 16, EDR 32.
    shared.active_speed = port.speed_ext_active != 0 ? port.speed_ext_active * 16u : port.speed_active;
  }
  enter(number, IBV_PORT_INIT);
}

void Model::link_down(TimePoint, PortNumber number) {
  ModelPort& port = ports_[number];
  if (port.phys == PhysState::link_up) port.phys = port.link_down_default;
  port.traps.clear();
  if (memory(number).counters.link_downed != UINT64_MAX) ++memory(number).counters.link_downed;
  enter(number, IBV_PORT_DOWN);
}

// Brings every port to where cables, power and settings say it should be. Called after each change of any of
// them.
void Model::settle(TimePoint now) {
  for (PortNumber number = 0; number < ports_.size(); ++number) {
    const bool down = memory(number).state == IBV_PORT_DOWN;
    if (!down && !sees_link(number)) {
      link_down(now, number);
    } else if (memory(number).phys_state != static_cast<std::uint32_t>(ports_[number].phys)) {
      PortChange change(memory(number));
      memory(number).phys_state = static_cast<std::uint32_t>(ports_[number].phys);
    }
  }
  for (PortNumber number = 0; number < ports_.size(); ++number) {
    if (memory(number).state == IBV_PORT_DOWN && sees_link(number)) link_up(now, number);
  }
  for (PortNumber number = 0; number < ports_.size(); ++number) {
    SharedPort& shared = memory(number);
    const bool carrier = has_carrier(number);
    const PortNumber peer = peer_of(number);
    if (shared.carrier != 0 && !carrier) {
      shared.carrier = 0;
      ++shared.carrier_epoch;
    }
    shared.peer = peer;
    if (carrier) shared.carrier = 1;
  }
}

// --- what the software of a host does ---

void Model::hold_issm(TimePoint now, PortNumber number, int change) {
  ports_[number].issm_holders += static_cast<unsigned>(change);
  update_capabilities(now, number);
}

void Model::update_capabilities(TimePoint now, PortNumber number) {
  SharedPort& shared = memory(number);
  const std::uint32_t mask = kCapabilities | (ports_[number].issm_holders != 0 ? kIsSm : 0);
  if (mask == shared.cap_mask) return;
  {
    PortChange change(shared);
    shared.cap_mask = mask;
  }
  trap_local_change(now, number, 0);
}

void Model::describe_node(TimePoint now, unsigned host, unsigned hca, const std::string& description) {
  ModelHca& device = hosts_.at(host).hcas.at(hca);
  device.description = description.substr(0, kNodeDescriptionSize);
  for (const PortNumber number : device.ports) trap_local_change(now, number, kNodeDescriptionChange);
}

// --- faults ---

void Model::cut(TimePoint now, unsigned cable, bool silent) {
  cables_.at(cable).cut = true;
  cables_.at(cable).silent = silent;
  settle(now);
}

void Model::mend(TimePoint now, unsigned cable) {
  ModelCable& mended = cables_.at(cable);
  mended.cut = mended.silent = mended.blocked_ab = mended.blocked_ba = false;
  settle(now);
}

void Model::block(TimePoint now, PortNumber from, bool blocked) {
  const auto& number = ports_.at(from).cable;
  if (!number) throw LabError("nothing is plugged in there");
  ModelCable& cable = cables_[*number];
  (cable.a == from ? cable.blocked_ab : cable.blocked_ba) = blocked;
  settle(now);
}

void Model::plug(TimePoint now, PortNumber a, PortNumber b) {
  if (a == b) throw LabError("a cable has two ends");
  unplug(now, a);
  unplug(now, b);
  ports_.at(a).cable = ports_.at(b).cable = static_cast<unsigned>(cables_.size());
  cables_.push_back({.a = a, .b = b});
  settle(now);
}

void Model::unplug(TimePoint now, PortNumber end) {
  const auto cable = ports_.at(end).cable;
  if (!cable) return;
  const ModelCable removed = cables_[*cable];
  ports_[removed.a].cable.reset();
  ports_[removed.b].cable.reset();
  settle(now);
  // The last one takes the free number.
  if (*cable != cables_.size() - 1) {
    cables_[*cable] = cables_.back();
    ports_[cables_[*cable].a].cable = ports_[cables_[*cable].b].cable = cable;
  }
  cables_.pop_back();
}

void Model::set_power(TimePoint now, unsigned host, bool on, bool silent) {
  ModelHost& changed = hosts_.at(host);
  if (on == changed.powered) return;
  if (on && changed.silent_death) {  // now the neighbours notice that it was gone
    changed.silent_death = false;
    settle(now);
  }
  changed.powered = on;
  changed.silent_death = !on && silent;
  settle(now);
  if (on) return;
  for (unsigned d = 0; d < changed.hcas.size(); ++d) power_off(changed, d);
  settle(now);
}

// What it had been told is gone.
void Model::power_off(ModelHost& host, unsigned hca) {
  host.hcas[hca].description = host.name + " softhca" + std::to_string(hca);
  for (const PortNumber number : host.hcas[hca].ports) {
    ports_[number].issm_holders = 0;
    reset_port(number);
  }
}

void Model::flap(TimePoint now, PortNumber number, Duration length) {
  ports_.at(number).held_down = true;
  settle(now);
  after(now + length, [this, number](TimePoint later) {
    ports_[number].held_down = false;
    settle(later);
  });
}

void Model::remove_hca(TimePoint now, unsigned host, unsigned hca) {
  ModelHost& changed = hosts_.at(host);
  const ModelHca& adapter = changed.hcas.at(hca);
  if (memory(adapter.ports.front()).insertion == 0) return;
  for (const PortNumber number : adapter.ports) memory(number).insertion = 0;
  surroundings_.adapter_removed(host, hca);
  settle(now);
  power_off(changed, hca);
  settle(now);
}

void Model::insert_hca(TimePoint now, unsigned host, unsigned hca) {
  const ModelHca& adapter = hosts_.at(host).hcas.at(hca);
  if (memory(adapter.ports.front()).insertion != 0) return;
  ++insertions_;
  for (const PortNumber number : adapter.ports) memory(number).insertion = insertions_;
  surroundings_.adapter_inserted(host, hca);
  settle(now);
}

void Model::reset_hca(TimePoint now, unsigned host, unsigned hca, Duration length) {
  remove_hca(now, host, hca);
  after(now + length, [this, host, hca](TimePoint later) { insert_hca(later, host, hca); });
}

void Model::set_faults(PortNumber number, const PortFaults& faults) {
  ports_.at(number).faults = faults;
  SharedPort& shared = memory(number);
  shared.delay_ns = faults.delay_ns;
  shared.rate_limit = faults.rate_limit;
  shared.loss_ppm = faults.loss_ppm;
  shared.corrupt_ppm = faults.corrupt_ppm;
}

// --- packets to QP0 and QP1 ---

void Model::transmit(TimePoint now, PortNumber number, Packet packet) {
  const SharedPort& shared = memory(number);
  if (!works(number)) return;
  const bool to_itself = is_lid_of(shared, packet.dlid);
  if (packet.dst_qp == 0) {
    if (packet.mad[kMgmtClass] == kClassSubnDirected) {
      switch (leave_directed(static_cast<std::uint8_t>(shared.number), packet.mad)) {
        case Smi::discard:
          return;
        case Smi::here:
          return receive_smp(now, number, std::move(packet));
        case Smi::wire:
          break;
      }
    } else if (to_itself) {
      return arrive(now, number, std::move(packet), false);
    }
    if (ports_[number].phys == PhysState::link_up) send_on_wire(now, number, std::move(packet));
    return;
  }
  if (shared.state != IBV_PORT_ACTIVE) return;
  if (to_itself) return arrive(now, number, std::move(packet), false);
  send_on_wire(now, number, std::move(packet));
}

void Model::send_on_wire(TimePoint now, PortNumber from, Packet packet) {
  SharedPort& shared = memory(from);
  ModelPort& port = ports_[from];
  shared.counters.xmit_packets += 1;
  shared.counters.unicast_xmit_packets += 1;
  shared.counters.xmit_data += kMadPacketOctets;
  if (shared.carrier == 0 || chance(port.faults.loss_ppm)) return;
  const PortNumber to = peer_of(from);
  if (chance(port.faults.corrupt_ppm)) {
    memory(to).counters.rcv_errors += 1;
    return;
  }
  if (chance(port.faults.mad_corrupt_ppm)) {
    packet.mad[random_() % packet.mad.size()] ^= static_cast<std::uint8_t>(1 + random_() % 255);
  }
  TimePoint arrival = now + std::chrono::nanoseconds(port.faults.delay_ns);
  if (port.faults.rate_limit != 0) {
    port.wire_free =
        std::max(port.wire_free, now) +
        std::chrono::nanoseconds(kMadPacketOctets * 8 * 1'000'000'000ull / port.faults.rate_limit);
    arrival = port.wire_free + std::chrono::nanoseconds(port.faults.delay_ns);
  }
  if (arrival <= now) return arrive(now, to, std::move(packet), true);
  // What is on its way when the light goes out is lost.
  after(arrival, [this, from, to, epoch = shared.carrier_epoch.load(), packet](TimePoint later) {
    if (memory(from).carrier_epoch == epoch) arrive(later, to, packet, true);
  });
}

void Model::arrive(TimePoint now, PortNumber number, Packet packet, bool from_wire) {
  SharedPort& shared = memory(number);
  if (from_wire) {
    shared.counters.rcv_packets += 1;
    shared.counters.unicast_rcv_packets += 1;
    shared.counters.rcv_data += kMadPacketOctets;
  }
  const bool addressed = is_lid_of(shared, packet.dlid);
  if (packet.dst_qp == 0) {
    if (!addressed && packet.dlid != kPermissiveLid) return;
    if (from_wire && packet.mad[kMgmtClass] == kClassSubnDirected &&
        enter_directed(static_cast<std::uint8_t>(shared.number), packet.mad) == Smi::discard) {
      return;
    }
    return receive_smp(now, number, std::move(packet));
  }
  if (shared.state == IBV_PORT_ACTIVE && addressed) receive_gmp(now, number, std::move(packet));
}

void Model::receive_smp(TimePoint now, PortNumber number, Packet packet) {
  const std::uint8_t mgmt_class = packet.mad[kMgmtClass];
  if (mgmt_class != kClassSubnLid && mgmt_class != kClassSubnDirected) return;
  std::optional<Mad> reply;
  if (!handle_smp(now, number, packet, reply)) {
    surroundings_.received(number, packet);
  } else if (reply) {
    answer(now, number, packet, *reply);
  }
}

void Model::receive_gmp(TimePoint now, PortNumber number, Packet packet) {
  SharedPort& shared = memory(number);
  const bool member = std::any_of(shared.pkeys.begin(), shared.pkeys.end(), [&](const auto& entry) {
    const std::uint16_t own = entry;
    return (own & 0x7FFF) != 0 && ((own ^ packet.pkey) & 0x7FFF) == 0 && ((own | packet.pkey) & 0x8000) != 0;
  });
  const KeyViolation violation{.slid = packet.slid,
                               .dlid = packet.dlid,
                               .key = member ? packet.qkey : packet.pkey,
                               .sl = packet.sl,
                               .src_qp = packet.src_qp,
                               .dst_qp = packet.dst_qp};
  if (!member) return key_violation(now, number, kTrapBadPkey, violation);
  if (packet.qkey != kGsiQkey) return key_violation(now, number, kTrapBadQkey, violation);
  std::optional<Mad> reply;
  if (!handle_gmp(number, packet, reply)) {
    surroundings_.received(number, packet);
  } else if (reply) {
    answer(now, number, packet, *reply);
  }
}

void Model::answer(TimePoint now, PortNumber number, const Packet& request, const Mad& mad) {
  const std::uint16_t own = static_cast<std::uint16_t>(memory(number).lid);
  Packet reply{.dst_qp = request.src_qp,
               .src_qp = request.dst_qp,
               .dlid = request.slid,
               .slid = request.dlid == kPermissiveLid && own != 0 ? own : request.dlid,
               .sl = request.sl,
               .pkey = request.pkey,
               .mad = mad};
  if (request.grh) {
    reply.grh = request.grh;
    std::swap(reply.grh->sgid, reply.grh->dgid);
  }
  if (mad[kMgmtClass] == kClassSubnDirected) reply.dlid = kPermissiveLid;
  transmit(now, number, std::move(reply));
}

}  // namespace fabric::softhca
