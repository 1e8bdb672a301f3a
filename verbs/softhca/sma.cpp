// The subnet management agent of a HCA port: the part of the model that answers SMPs. Volume 1, release 1.3:
// 14.2.4 (who may do what: M_Key), 14.2.5 (the attributes), 14.3.2 and 14.2.5.1 (traps and notices).
//
// What the SMA does not know it hands to the software of the host, as an adapter does: SMInfo, traps, and
// responses are for a subnet manager that runs there.
//
// Departures. Get of PortInfo, P_KeyTable and the like answers for any port of the HCA, Set for the one that
// the SMP came in on only (each may be on a subnet of its own, with its own M_Key). Fields of PortInfo that
// are out of range are rejected when they change; a manager may write back what it has read.
#include <infiniband/mad.h>

#include <algorithm>

#include "verbs/softhca/mad_layout.hpp"
#include "verbs/softhca/model.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint16_t kAttributeNotice = 0x02;
constexpr unsigned kSupportsExtendedSpeeds = 1u << 31;  // of PortInfo's attribute modifier
constexpr unsigned kGuidsPerBlock = 8;
constexpr unsigned kVlArbitrationCap = 8;

// A trap is repeated as often as SubnetTimeOut allows (14.3.13), but not faster than this.
constexpr Duration kShortestTrapInterval = std::chrono::milliseconds(250);

std::uint64_t get(const Mad& mad, MAD_FIELDS field) {
  return ::mad_get_field(const_cast<std::uint8_t*>(mad.data()), kSmpData, field);
}
std::uint64_t get64(const Mad& mad, MAD_FIELDS field) {
  return ::mad_get_field64(const_cast<std::uint8_t*>(mad.data()), kSmpData, field);
}
void set(Mad& mad, MAD_FIELDS field, std::uint64_t value) {
  ::mad_set_field(mad.data(), kSmpData, field, static_cast<std::uint32_t>(value));
}
void set64(Mad& mad, MAD_FIELDS field, std::uint64_t value) {
  ::mad_set_field64(mad.data(), kSmpData, field, value);
}

bool is_unicast(std::uint64_t lid) {
  return lid >= 1 && lid <= kMaxUnicastLid.value();
}

}  // namespace

// --- who may (14.2.4) ---

// False: the SMP is dropped, the violation counted, and the manager told. Protection levels: 0 everybody may
// read, the key too; 1 everybody may read, but not the key; 2 and 3 nobody may. Nobody may write at any
// level.
bool Model::check_mkey(TimePoint now, PortNumber number, const Packet& packet) {
  ModelPort& port = ports_[number];
  const Mad& mad = packet.mad;
  if (port.mkey == 0) return true;
  if (load64(mad, kMkey) == port.mkey) {
    port.lease_running = 0;
    return true;
  }
  if (mad[kMethod] == kMethodGet && port.mkey_protect < 2) return true;
  if (port.mkey_violations != UINT16_MAX) ++port.mkey_violations;
  // A manager that has forgotten the key gets in after the lease: protection ends, the key can be read.
  if (port.mkey_lease != 0 && port.lease_running == 0) {
    port.lease_running = next_lease_++;
    after(now + std::chrono::seconds(port.mkey_lease), [this, number, lease = port.lease_running](TimePoint) {
      if (ports_[number].lease_running != lease) return;
      ports_[number].lease_running = 0;
      ports_[number].mkey_protect = 0;
    });
  }
  std::array<std::uint8_t, 54> details{};
  const bool directed = mad[kMgmtClass] == kClassSubnDirected;
  store16(details, 2, packet.slid);
  store16(details, 4, directed ? load16(mad, kDrSlid) : 0);
  details[6] = mad[kMethod];
  store16(details, 8, load16(mad, kAttribute));
  store32(details, 10, load32(mad, kModifier));
  store64(details, 14, load64(mad, kMkey));
  if (directed) {
    details[23] = static_cast<std::uint8_t>(0x80 | std::min<std::uint8_t>(mad[kHopCount], 30));
    std::copy_n(mad.begin() + kReturnPath, 30, details.begin() + 24);
  }
  send_trap(now, number, kTrapBadMkey, details);
  return false;
}

// --- dispatch ---

bool Model::handle_smp(TimePoint now, PortNumber number, const Packet& packet, std::optional<Mad>& reply) {
  const Mad& request = packet.mad;
  const std::uint8_t method = request[kMethod];
  const std::uint16_t attribute = load16(request, kAttribute);
  if ((method & kResponseBit) != 0 || method == kMethodTrap) return false;
  if ((method == kMethodGet || method == kMethodSet) && attribute == IB_ATTR_SMINFO) return false;

  Mad answer = request;
  std::uint16_t status = 0;
  if (request[kBaseVersion] != 1 || request[kClassVersion] != 1) {
    status = kStatusBadVersion;
  } else if (method == kMethodTrapRepress) {
    if (check_mkey(now, number, packet)) {
      std::erase_if(ports_[number].traps, [&](const PendingTrap& trap) {
        return trap.transaction == load64(request, kTransaction);
      });
    }
    return true;
  } else if (method != kMethodGet && method != kMethodSet) {
    status = kStatusBadMethod;
  } else if (!check_mkey(now, number, packet)) {
    return true;
  } else {
    const bool set = method == kMethodSet;
    const bool knows_key = ports_[number].mkey == 0 || load64(request, kMkey) == ports_[number].mkey;
    switch (attribute) {
      case IB_ATTR_NODE_DESC:
        status = set ? kStatusBadAttribute : 0;
        if (!set) {
          std::fill_n(answer.begin() + kSmpData, kNodeDescriptionSize, 0);
          std::copy(hca_of(number).description.begin(), hca_of(number).description.end(),
                    answer.begin() + kSmpData);
        }
        break;
      case IB_ATTR_NODE_INFO:
        status = set ? kStatusBadAttribute : node_info(number, answer);
        break;
      case IB_ATTR_PORT_INFO:
        status = port_info(now, number, set, answer, knows_key);
        break;
      case IB_ATTR_GUID_INFO:
        status = guid_info(number, set, answer);
        break;
      case IB_ATTR_PKEY_TBL:
        status = pkey_table(number, set, answer);
        break;
      case IB_ATTR_SLVL_TABLE:
        status = sl_to_vl(number, set, answer);
        break;
      case IB_ATTR_VL_ARBITRATION:
        status = vl_arbitration(number, set, answer);
        break;
      default:
        status = kStatusBadAttribute;
    }
  }
  answer[kMethod] = static_cast<std::uint8_t>(
      method == kMethodGet || method == kMethodSet ? kMethodGetResp : method | kResponseBit);
  store16(answer, kStatus, status);
  if (answer[kMgmtClass] == kClassSubnDirected) answer[kStatus] |= kDirectionBit;
  reply = answer;
  return true;
}

// --- attributes (14.2.5). Each returns the MAD status, and leaves its value in the MAD ---

std::uint16_t Model::node_info(PortNumber number, Mad& mad) {
  const ModelHca& hca = hca_of(number);
  std::fill_n(mad.begin() + kSmpData, IB_SMP_DATA_SIZE, 0);
  set(mad, IB_NODE_BASE_VERS_F, 1);
  set(mad, IB_NODE_CLASS_VERS_F, 1);
  set(mad, IB_NODE_TYPE_F, 1);
  set(mad, IB_NODE_NPORTS_F, hca.ports.size());
  set64(mad, IB_NODE_SYSTEM_GUID_F, hca.node_guid);
  set64(mad, IB_NODE_GUID_F, hca.node_guid);
  set64(mad, IB_NODE_PORT_GUID_F, memory(number).guid);
  set(mad, IB_NODE_PARTITION_CAP_F, kMaxPkeys);
  set(mad, IB_NODE_DEVID_F, kPartId);
  set(mad, IB_NODE_REVISION_F, kHardwareVersion);
  set(mad, IB_NODE_LOCAL_PORT_F, memory(number).number);
  set(mad, IB_NODE_VENDORID_F, kVendorId);
  return 0;
}

std::uint16_t Model::port_info(TimePoint now, PortNumber number, bool write, Mad& mad, bool knows_key) {
  const ModelHca& hca = hca_of(number);
  const std::uint32_t asked = load32(mad, kModifier) & ~kSupportsExtendedSpeeds;
  if (asked > hca.ports.size()) return kStatusBadValue;
  const PortNumber shown = asked == 0 ? number : hca.ports[asked - 1];
  bool reregister = false;
  if (write) {
    if (shown != number) return kStatusBadValue;
    reregister = get(mad, IB_PORT_CLIENT_REREG_F) != 0;
    if (const std::uint16_t status = set_port_info(now, number, mad); status != 0) return status;
    knows_key = true;
  }
  const ModelPort& port = ports_[shown];
  const SharedPort& shared = memory(shown);
  const auto saturated = [](std::uint32_t count) { return std::min<std::uint32_t>(count, UINT16_MAX); };
  std::fill_n(mad.begin() + kSmpData, IB_SMP_DATA_SIZE, 0);
  const bool show_key = shown == number && (knows_key || port.mkey_protect == 0);
  set64(mad, IB_PORT_MKEY_F, show_key ? port.mkey : 0);
  set64(mad, IB_PORT_GID_PREFIX_F, shared.gid_prefix);
  set(mad, IB_PORT_LID_F, shared.lid);
  set(mad, IB_PORT_SMLID_F, shared.sm_lid);
  set(mad, IB_PORT_CAPMASK_F, shared.cap_mask);
  set(mad, IB_PORT_MKEY_LEASE_F, port.mkey_lease);
  set(mad, IB_PORT_LOCAL_PORT_F, memory(number).number);
  set(mad, IB_PORT_LINK_WIDTH_ENABLED_F, port.width_enabled);
  set(mad, IB_PORT_LINK_WIDTH_SUPPORTED_F, kAllWidths);
  set(mad, IB_PORT_LINK_WIDTH_ACTIVE_F, shared.active_width);
  set(mad, IB_PORT_LINK_SPEED_SUPPORTED_F, kAllSpeeds);
  set(mad, IB_PORT_STATE_F, shared.state);
  set(mad, IB_PORT_PHYS_STATE_F, static_cast<unsigned>(port.phys));
  set(mad, IB_PORT_LINK_DOWN_DEF_F, static_cast<unsigned>(port.link_down_default));
  set(mad, IB_PORT_MKEY_PROT_BITS_F, port.mkey_protect);
  set(mad, IB_PORT_LMC_F, shared.lmc);
  set(mad, IB_PORT_LINK_SPEED_ACTIVE_F, port.speed_active);
  set(mad, IB_PORT_LINK_SPEED_ENABLED_F, port.speed_enabled);
  set(mad, IB_PORT_NEIGHBOR_MTU_F, shared.active_mtu);
  set(mad, IB_PORT_SMSL_F, shared.sm_sl);
  set(mad, IB_PORT_VL_CAP_F, kVlCap);
  set(mad, IB_PORT_VL_HIGH_LIMIT_F, port.vl_high_limit);
  set(mad, IB_PORT_VL_ARBITRATION_HIGH_CAP_F, kVlArbitrationCap);
  set(mad, IB_PORT_VL_ARBITRATION_LOW_CAP_F, kVlArbitrationCap);
  set(mad, IB_PORT_INIT_TYPE_REPLY_F, shared.init_type_reply);
  set(mad, IB_PORT_MTU_CAP_F, shared.max_mtu);
  set(mad, IB_PORT_OPER_VLS_F, port.operational_vls);
  set(mad, IB_PORT_MKEY_VIOL_F, port.mkey_violations);
  set(mad, IB_PORT_PKEY_VIOL_F, saturated(shared.pkey_violations));
  set(mad, IB_PORT_QKEY_VIOL_F, saturated(shared.qkey_violations));
  set(mad, IB_PORT_GUID_CAP_F, kMaxGids);
  set(mad, IB_PORT_CLIENT_REREG_F, reregister);
  set(mad, IB_PORT_MCAST_PKEY_SUPR_ENAB_F, port.mcast_pkey_trap_suppression);
  set(mad, IB_PORT_SUBN_TIMEOUT_F, shared.subnet_timeout);
  set(mad, IB_PORT_RESP_TIME_VAL_F, 16);  // 4.096 us * 2^16, a quarter of a second
  set(mad, IB_PORT_LOCAL_PHYS_ERR_F, port.local_phy_errors);
  set(mad, IB_PORT_OVERRUN_ERR_F, port.overrun_errors);
  set(mad, IB_PORT_LINK_SPEED_EXT_ACTIVE_F, port.speed_ext_active);
  set(mad, IB_PORT_LINK_SPEED_EXT_SUPPORTED_F, kAllExtSpeeds);
  set(mad, IB_PORT_LINK_SPEED_EXT_ENABLED_F, port.speed_ext_enabled);
  return 0;
}

// 14.2.5.6. All or nothing: the first field that will not do ends it.
std::uint16_t Model::set_port_info(TimePoint now, PortNumber number, const Mad& mad) {
  ModelPort& port = ports_[number];
  SharedPort& shared = memory(number);

  const auto lid = static_cast<std::uint32_t>(get(mad, IB_PORT_LID_F));
  const auto lmc = static_cast<std::uint32_t>(get(mad, IB_PORT_LMC_F));
  const auto sm_lid = static_cast<std::uint32_t>(get(mad, IB_PORT_SMLID_F));
  const auto sm_sl = static_cast<std::uint32_t>(get(mad, IB_PORT_SMSL_F));
  if ((lid != shared.lid || lmc != shared.lmc) && (!is_unicast(lid) || (lid & ((1u << lmc) - 1)) != 0)) {
    return kStatusBadValue;
  }
  if (sm_lid != shared.sm_lid && !is_unicast(sm_lid)) return kStatusBadValue;

  const auto mtu = static_cast<std::uint32_t>(get(mad, IB_PORT_NEIGHBOR_MTU_F));
  if (mtu != shared.active_mtu && (mtu < IBV_MTU_256 || mtu > shared.max_mtu)) return kStatusBadValue;
  auto vls = static_cast<std::uint8_t>(get(mad, IB_PORT_OPER_VLS_F));
  if (vls == 0) vls = port.operational_vls;  // 0: no change
  if (vls > kVlCap) return kStatusBadValue;

  // Widths and speeds: 0 is no change, all ones whatever is supported.
  auto width = static_cast<std::uint8_t>(get(mad, IB_PORT_LINK_WIDTH_ENABLED_F));
  auto speed = static_cast<std::uint8_t>(get(mad, IB_PORT_LINK_SPEED_ENABLED_F));
  auto speed_ext = static_cast<std::uint8_t>(get(mad, IB_PORT_LINK_SPEED_EXT_ENABLED_F));
  width = width == 0 ? port.width_enabled : width == 0xFF ? kAllWidths : width;
  speed = speed == 0 ? port.speed_enabled : speed == 0xF ? kAllSpeeds : speed;
  if ((load32(mad, kModifier) & kSupportsExtendedSpeeds) == 0) speed_ext = 0;
  speed_ext = speed_ext == 0    ? port.speed_ext_enabled
              : speed_ext == 30 ? std::uint8_t{0}  // extended speeds disabled
              : speed_ext == 31 ? kAllExtSpeeds
                                : speed_ext;
  if ((width & ~kAllWidths) != 0 || (speed & ~kAllSpeeds) != 0 || (speed_ext & ~kAllExtSpeeds) != 0) {
    return kStatusBadValue;
  }

  const auto link_down_default = static_cast<std::uint8_t>(get(mad, IB_PORT_LINK_DOWN_DEF_F));
  if (link_down_default > static_cast<std::uint8_t>(PhysState::polling)) return kStatusBadValue;

  // 7.2.7: the manager may take a port from Initialize to Armed to Active, and down from anywhere.
  const auto state = static_cast<std::uint32_t>(get(mad, IB_PORT_STATE_F));
  const auto phys = static_cast<std::uint8_t>(get(mad, IB_PORT_PHYS_STATE_F));
  const std::uint32_t present = shared.state;
  const bool legal = state == IBV_PORT_NOP || state == IBV_PORT_DOWN ||
                     (state == IBV_PORT_ARMED && (present == IBV_PORT_INIT || present == IBV_PORT_ARMED)) ||
                     (state == IBV_PORT_ACTIVE && (present == IBV_PORT_ARMED || present == IBV_PORT_ACTIVE));
  const bool goes_down = state == IBV_PORT_DOWN || phys != 0;
  if (!legal || phys > static_cast<std::uint8_t>(PhysState::disabled) ||
      (phys != 0 && state > IBV_PORT_DOWN)) {
    return kStatusBadValue;
  }

  std::vector<ibv_event_type> events;
  const std::uint64_t prefix = get64(mad, IB_PORT_GID_PREFIX_F);
  if (lid != shared.lid || lmc != shared.lmc) events.push_back(IBV_EVENT_LID_CHANGE);
  if (sm_lid != shared.sm_lid || sm_sl != shared.sm_sl) events.push_back(IBV_EVENT_SM_CHANGE);
  if (prefix != shared.gid_prefix) events.push_back(IBV_EVENT_GID_CHANGE);
  if (get(mad, IB_PORT_CLIENT_REREG_F) != 0) events.push_back(IBV_EVENT_CLIENT_REREGISTER);
  const std::uint8_t changed = static_cast<std::uint8_t>(
      (width != port.width_enabled ? kLinkWidthEnabledChange : 0) |
      (speed != port.speed_enabled || speed_ext != port.speed_ext_enabled ? kLinkSpeedEnabledChange : 0));

  port.mkey = get64(mad, IB_PORT_MKEY_F);
  port.mkey_protect = static_cast<std::uint8_t>(get(mad, IB_PORT_MKEY_PROT_BITS_F));
  port.mkey_lease = static_cast<std::uint16_t>(get(mad, IB_PORT_MKEY_LEASE_F));
  port.mkey_violations = static_cast<std::uint16_t>(get(mad, IB_PORT_MKEY_VIOL_F));
  port.lease_running = 0;
  port.width_enabled = width;
  port.speed_enabled = speed;
  port.speed_ext_enabled = speed_ext;
  if (link_down_default != 0) port.link_down_default = static_cast<PhysState>(link_down_default);
  port.operational_vls = vls;
  port.vl_high_limit = static_cast<std::uint8_t>(get(mad, IB_PORT_VL_HIGH_LIMIT_F));
  port.local_phy_errors = static_cast<std::uint8_t>(get(mad, IB_PORT_LOCAL_PHYS_ERR_F));
  port.overrun_errors = static_cast<std::uint8_t>(get(mad, IB_PORT_OVERRUN_ERR_F));
  port.mcast_pkey_trap_suppression = get(mad, IB_PORT_MCAST_PKEY_SUPR_ENAB_F) != 0;
  {
    PortChange change(shared);
    shared.lid = lid;
    shared.lmc = lmc;
    shared.sm_lid = sm_lid;
    shared.sm_sl = sm_sl;
    shared.subnet_timeout = static_cast<std::uint32_t>(get(mad, IB_PORT_SUBN_TIMEOUT_F));
    shared.gid_prefix = prefix;
    shared.active_mtu = mtu;
    shared.init_type_reply = static_cast<std::uint32_t>(get(mad, IB_PORT_INIT_TYPE_REPLY_F));
    shared.pkey_violations = static_cast<std::uint32_t>(get(mad, IB_PORT_PKEY_VIOL_F));
    shared.qkey_violations = static_cast<std::uint32_t>(get(mad, IB_PORT_QKEY_VIOL_F));
  }
  if (state > IBV_PORT_DOWN && state != present) enter(number, static_cast<ibv_port_state>(state));
  for (const ibv_event_type event : events) surroundings_.port_event(number, event);
  if (changed != 0) trap_local_change(now, number, changed);
  if (goes_down) {
    // The answer leaves first.
    const PhysState target = phys == 0 ? port.link_down_default : static_cast<PhysState>(phys);
    after(now, [this, number, target](TimePoint later) {
      ports_[number].held_down = true;
      settle(later);
      ports_[number].held_down = false;
      ports_[number].phys = target;
      settle(later);
    });
  }
  return 0;
}

std::uint16_t Model::guid_info(PortNumber number, bool write, Mad& mad) {
  SharedPort& shared = memory(number);
  const std::uint32_t block = load32(mad, kModifier);
  if (block >= kMaxGids / kGuidsPerBlock) return kStatusBadValue;
  bool changed = false;
  {
    PortChange change(shared);
    for (unsigned i = 0; i < kGuidsPerBlock; ++i) {
      const unsigned index = block * kGuidsPerBlock + i;
      if (write && index != 0) {  // the first is the port's own
        const std::uint64_t guid = load64(mad, kSmpData + 8 * i);
        changed |= shared.guids[index].exchange(guid) != guid;
      }
      store64(mad, kSmpData + 8 * i, shared.guids[index]);
    }
  }
  if (changed) surroundings_.port_event(number, IBV_EVENT_GID_CHANGE);
  return 0;
}

std::uint16_t Model::pkey_table(PortNumber number, bool write, Mad& mad) {
  SharedPort& shared = memory(number);
  if ((load32(mad, kModifier) & 0xFFFF) != 0) return kStatusBadValue;  // there is one block
  bool changed = false;
  {
    PortChange change(shared);
    for (unsigned i = 0; i < kMaxPkeys; ++i) {
      if (write) {
        const std::uint16_t pkey = load16(mad, kSmpData + 2 * i);
        changed |= shared.pkeys[i].exchange(pkey) != pkey;
      }
      store16(mad, kSmpData + 2 * i, shared.pkeys[i]);
    }
  }
  if (changed) surroundings_.port_event(number, IBV_EVENT_PKEY_CHANGE);
  return 0;
}

std::uint16_t Model::sl_to_vl(PortNumber number, bool write, Mad& mad) {
  auto& table = ports_[number].sl_to_vl;
  if (write) {
    std::copy_n(mad.begin() + kSmpData, table.size(), table.begin());
  } else {
    std::fill_n(mad.begin() + kSmpData, IB_SMP_DATA_SIZE, 0);
    std::copy(table.begin(), table.end(), mad.begin() + kSmpData);
  }
  return 0;
}

std::uint16_t Model::vl_arbitration(PortNumber number, bool write, Mad& mad) {
  const std::uint32_t block = load32(mad, kModifier) >> 16;
  if (block != 1 && block != 3) return kStatusBadValue;  // 2 and 4 are beyond the capability
  auto& table = block == 1 ? ports_[number].vl_arbitration_low : ports_[number].vl_arbitration_high;
  if (write) {
    std::copy_n(mad.begin() + kSmpData, 2 * kVlArbitrationCap, table.begin());
  }
  std::copy(table.begin(), table.end(), mad.begin() + kSmpData);
  return 0;
}

// --- traps (14.2.5.1, 14.3.2) ---

void Model::send_trap(TimePoint now, PortNumber number, std::uint16_t trap_number,
                      const std::array<std::uint8_t, 54>& details) {
  ModelPort& port = ports_[number];
  SharedPort& shared = memory(number);
  if (shared.sm_lid == 0 || shared.lid == 0 || shared.state == IBV_PORT_DOWN) return;  // nobody to tell
  PendingTrap trap{.number = trap_number};
  constexpr std::uint8_t kUrgent = 1, kSecurity = 2, kInformational = 4;
  const std::uint8_t type = trap_number >= kTrapBadMkey       ? kSecurity
                            : trap_number == kTrapLocalChange ? kInformational
                                                              : kUrgent;
  trap.notice[0] = 0x80 | type;  // generic
  trap.notice[3] = 1;            // producer: channel adapter
  store16(trap.notice, 4, trap_number);
  store16(trap.notice, 6, static_cast<std::uint16_t>(shared.lid));
  std::copy(details.begin(), details.end(), trap.notice.begin() + 10);
  const bool told = std::any_of(port.traps.begin(), port.traps.end(),
                                [&](const PendingTrap& pending) { return pending.notice == trap.notice; });
  if (told) return;
  // A newer state of affairs takes the place of an older one.
  if (trap_number == kTrapLocalChange) {
    std::erase_if(port.traps, [](const PendingTrap& pending) { return pending.number == kTrapLocalChange; });
  }
  trap.transaction = port.next_trap_transaction++;
  port.traps.push_back(trap);
  repeat_trap(now, number, trap.transaction);
}

void Model::repeat_trap(TimePoint now, PortNumber number, std::uint64_t transaction) {
  const ModelPort& port = ports_[number];
  const SharedPort& shared = memory(number);
  const auto trap = std::find_if(port.traps.begin(), port.traps.end(), [&](const PendingTrap& pending) {
    return pending.transaction == transaction;
  });
  if (trap == port.traps.end()) return;
  Packet packet{.dst_qp = 0,
                .src_qp = 0,
                .dlid = static_cast<std::uint16_t>(shared.sm_lid),
                .slid = static_cast<std::uint16_t>(shared.lid),
                .sl = static_cast<std::uint8_t>(shared.sm_sl)};
  packet.mad[kBaseVersion] = packet.mad[kClassVersion] = 1;
  packet.mad[kMgmtClass] = kClassSubnLid;
  packet.mad[kMethod] = kMethodTrap;
  store64(packet.mad, kTransaction, transaction);
  store16(packet.mad, kAttribute, kAttributeNotice);
  std::copy(trap->notice.begin(), trap->notice.end(), packet.mad.begin() + kSmpData);
  const Duration subnet_timeout = std::chrono::nanoseconds(4096ull << shared.subnet_timeout);
  after(now + std::max(subnet_timeout, kShortestTrapInterval),
        [this, number, transaction](TimePoint later) { repeat_trap(later, number, transaction); });
  transmit(now, number, packet);
}

void Model::trap_local_change(TimePoint now, PortNumber number, std::uint8_t flags) {
  const SharedPort& shared = memory(number);
  std::array<std::uint8_t, 54> details{};
  store16(details, 2, static_cast<std::uint16_t>(shared.lid));
  details[5] = flags != 0 ? 1 : 0;  // OtherLocalChanges
  store32(details, 6, shared.cap_mask);
  details[11] = flags;
  send_trap(now, number, kTrapLocalChange, details);
}

void Model::key_violation(TimePoint now, PortNumber number, std::uint16_t trap,
                          const KeyViolation& violation) {
  SharedPort& shared = memory(number);
  (trap == kTrapBadPkey ? shared.pkey_violations : shared.qkey_violations) += 1;
  const bool multicast = violation.dlid > kMaxUnicastLid.value() && violation.dlid != kPermissiveLid;
  if (trap == kTrapBadPkey && multicast && ports_[number].mcast_pkey_trap_suppression) return;
  std::array<std::uint8_t, 54> details{};
  store16(details, 2, violation.slid);
  store16(details, 4, violation.dlid);
  store32(details, 6, violation.key);
  store32(details, 10, std::uint32_t{violation.sl} << 28 | violation.src_qp);
  store32(details, 14, violation.dst_qp);
  send_trap(now, number, trap, details);
}

void Model::raise_error_counter(TimePoint now, PortNumber number, std::uint16_t trap) {
  SharedPort& shared = memory(number);
  if (trap == kTrapLinkIntegrity) shared.counters.local_link_integrity_errors += 1;
  if (trap == kTrapBufferOverrun) shared.counters.excessive_buffer_overruns += 1;
  std::array<std::uint8_t, 54> details{};
  store16(details, 2, static_cast<std::uint16_t>(shared.lid));
  details[4] = static_cast<std::uint8_t>(shared.number);
  send_trap(now, number, trap, details);
}

}  // namespace fabric::softhca
