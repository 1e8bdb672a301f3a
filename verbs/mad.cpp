#include "verbs/mad.hpp"

#include <infiniband/mad.h>

#include <algorithm>

#include "words/text.hpp"

namespace fabric::verbs {

namespace {

constexpr std::uint8_t kBaseVersion = 1;
constexpr std::uint8_t kAdministrationClassVersion = 2;
constexpr std::uint16_t kDirectionBit = 0x8000;

}  // namespace

Mad::Mad(MadClass management_class, MadMethod method, std::uint16_t attribute, std::uint32_t modifier) {
  bytes_[0] = kBaseVersion;
  bytes_[1] = static_cast<std::uint8_t>(management_class);
  bytes_[2] = management_class == MadClass::subnet_administration ? kAdministrationClassVersion : 1;
  set_method(method);
  set_attribute(attribute);
  set_modifier(modifier);
}

Mad::Mad(std::span<const std::uint8_t, kSize> bytes) {
  std::copy(bytes.begin(), bytes.end(), bytes_.begin());
}

std::optional<Mad> Mad::decode(std::span<const std::uint8_t> bytes) {
  if (bytes.size() != kSize || bytes[0] != kBaseVersion) return std::nullopt;
  return Mad(bytes.first<kSize>());
}

bool Mad::is_response() const {
  return (bytes_[3] & kResponseBit) != 0 || method() == MadMethod::trap_repress;
}

std::uint16_t Mad::status() const {
  const auto raw = static_cast<std::uint16_t>(get<2>(4));
  return management_class() == MadClass::subnet_directed_route
             ? static_cast<std::uint16_t>(raw & ~kDirectionBit)
             : raw;
}

void Mad::set_status(std::uint16_t status) {
  const std::uint64_t direction =
      management_class() == MadClass::subnet_directed_route ? get<2>(4) & kDirectionBit : 0;
  put<2>(4, status | direction);
}

bool Mad::is_subnet_management() const {
  return management_class() == MadClass::subnet_lid_routed ||
         management_class() == MadClass::subnet_directed_route;
}

Mad directed_route_request(MadMethod method, SmAttribute attribute, std::uint32_t modifier,
                           std::uint8_t egress) {
  Mad mad(MadClass::subnet_directed_route, method, static_cast<std::uint16_t>(attribute), modifier);
  auto& bytes = mad.bytes();
  bytes[7] = egress == 0 ? 0 : 1;  // hop count; the pointer starts at 0
  store_big_endian<2>(bytes, 32, kPermissiveLid.value());
  store_big_endian<2>(bytes, 34, kPermissiveLid.value());
  bytes[128 + 1] = egress;  // InitialPath[1]
  return mad;
}

Mad response_to(const Mad& request) {
  Mad response = request;
  if (request.method() == MadMethod::set)
    response.set_method(MadMethod::get_response);
  else if (request.method() == MadMethod::trap)
    response.set_method(MadMethod::trap_repress);
  else
    response.set_method(
        MadMethod{static_cast<std::uint8_t>(static_cast<std::uint8_t>(request.method()) | kResponseBit)});
  store_big_endian<2>(response.bytes(), 4,
                      request.management_class() == MadClass::subnet_directed_route ? kDirectionBit : 0);
  return response;
}

SmpAttribute::SmpAttribute(std::span<const std::uint8_t, 64> bytes) {
  std::copy(bytes.begin(), bytes.end(), bytes_.begin());
}

void SmpAttribute::store(Mad& mad) const {
  std::copy(bytes_.begin(), bytes_.end(), mad.smp_data().begin());
}

// libibmad reads through a pointer to non-const, and writes nothing.
std::uint32_t SmpAttribute::field(int name) const {
  return mad_get_field(const_cast<std::uint8_t*>(bytes_.data()), 0, static_cast<MAD_FIELDS>(name));
}
std::uint64_t SmpAttribute::field64(int name) const {
  return mad_get_field64(const_cast<std::uint8_t*>(bytes_.data()), 0, static_cast<MAD_FIELDS>(name));
}
void SmpAttribute::set_field(int name, std::uint32_t value) {
  mad_set_field(bytes_.data(), 0, static_cast<MAD_FIELDS>(name), value);
}
void SmpAttribute::set_field64(int name, std::uint64_t value) {
  mad_set_field64(bytes_.data(), 0, static_cast<MAD_FIELDS>(name), value);
}

std::string node_description(std::span<const std::uint8_t, 64> bytes) {
  return printable(std::as_bytes(bytes));
}

std::string_view to_string(PortState state) {
  switch (state) {
    case PortState::no_change:
      return "None";
    case PortState::down:
      return "Down";
    case PortState::initialize:
      return "Init";
    case PortState::armed:
      return "Armed";
    case PortState::active:
      return "Active";
  }
  return "Unknown";
}

std::string_view to_string(SmState state) {
  switch (state) {
    case SmState::not_active:
      return "not-active";
    case SmState::discovering:
      return "discovering";
    case SmState::standby:
      return "standby";
    case SmState::master:
      return "master";
  }
  return "unknown";
}

namespace {
template <class To>
To narrow(std::uint32_t value) {
  return static_cast<To>(value);
}

/// Signalling rates by bit, in 100 Mbit/s.
constexpr std::array<unsigned, 3> kLaneRates{25, 50, 100};
constexpr std::array<unsigned, 4> kExtendedLaneRates{140, 250, 500, 1000};

template <std::size_t size>
unsigned fastest_lane(const std::array<unsigned, size>& rates, unsigned bits) {
  unsigned fastest = 0;
  for (std::size_t i = 0; i < size; ++i)
    if ((bits >> i & 1) != 0) fastest = rates[i];
  return fastest;
}
}  // namespace

unsigned link_lanes(std::uint8_t width) {
  switch (width) {
    case 1:
      return 1;
    case 2:
      return 4;
    case 4:
      return 8;
    case 8:
      return 12;
    case 16:
      return 2;
    default:
      return 0;
  }
}

std::string lanes_text(LinkSpeed speed) {
  return speed.lanes == 0 ? "unknown" : std::to_string(speed.lanes) + "x";
}

std::string lane_rate_text(LinkSpeed speed) {
  if (speed.lane_rate == 0) return "unknown";
  const std::string half = speed.lane_rate % 10 == 0 ? "" : "." + std::to_string(speed.lane_rate % 10);
  return std::to_string(speed.lane_rate / 10) + half + " Gbit/s";
}

std::uint64_t PortInfo::m_key() const {
  return field64(IB_PORT_MKEY_F);
}
std::uint64_t PortInfo::gid_prefix() const {
  return field64(IB_PORT_GID_PREFIX_F);
}
Lid PortInfo::lid() const {
  return Lid{narrow<std::uint16_t>(field(IB_PORT_LID_F))};
}
Lid PortInfo::sm_lid() const {
  return Lid{narrow<std::uint16_t>(field(IB_PORT_SMLID_F))};
}
std::uint32_t PortInfo::capability_mask() const {
  return field(IB_PORT_CAPMASK_F);
}
PortState PortInfo::state() const {
  return PortState{narrow<std::uint8_t>(field(IB_PORT_STATE_F))};
}
std::uint8_t PortInfo::physical_state() const {
  return narrow<std::uint8_t>(field(IB_PORT_PHYS_STATE_F));
}
std::uint8_t PortInfo::lmc() const {
  return narrow<std::uint8_t>(field(IB_PORT_LMC_F));
}
std::uint8_t PortInfo::neighbor_mtu() const {
  return narrow<std::uint8_t>(field(IB_PORT_NEIGHBOR_MTU_F));
}
std::uint8_t PortInfo::mtu_cap() const {
  return narrow<std::uint8_t>(field(IB_PORT_MTU_CAP_F));
}
std::uint8_t PortInfo::sm_sl() const {
  return narrow<std::uint8_t>(field(IB_PORT_SMSL_F));
}
std::uint8_t PortInfo::vl_cap() const {
  return narrow<std::uint8_t>(field(IB_PORT_VL_CAP_F));
}
std::uint8_t PortInfo::operational_vls() const {
  return narrow<std::uint8_t>(field(IB_PORT_OPER_VLS_F));
}
std::uint8_t PortInfo::subnet_timeout() const {
  return narrow<std::uint8_t>(field(IB_PORT_SUBN_TIMEOUT_F));
}
std::uint8_t PortInfo::vl_arbitration_low_cap() const {
  return narrow<std::uint8_t>(field(IB_PORT_VL_ARBITRATION_LOW_CAP_F));
}
std::uint8_t PortInfo::vl_arbitration_high_cap() const {
  return narrow<std::uint8_t>(field(IB_PORT_VL_ARBITRATION_HIGH_CAP_F));
}
std::uint8_t PortInfo::guid_cap() const {
  return narrow<std::uint8_t>(field(IB_PORT_GUID_CAP_F));
}
LinkSpeed PortInfo::link_speed() const {
  const unsigned extended = field(IB_PORT_LINK_SPEED_EXT_ACTIVE_F);
  return {link_lanes(narrow<std::uint8_t>(field(IB_PORT_LINK_WIDTH_ACTIVE_F))),
          extended != 0 ? fastest_lane(kExtendedLaneRates, extended)
                        : fastest_lane(kLaneRates, field(IB_PORT_LINK_SPEED_ACTIVE_F))};
}
LinkSpeed PortInfo::fastest_link_speed(const PortInfo& other) const {
  const auto common = [&](int name) { return field(name) & other.field(name); };
  LinkSpeed fastest;
  for (unsigned bit = 0; bit < 8; ++bit)
    if ((common(IB_PORT_LINK_WIDTH_SUPPORTED_F) >> bit & 1) != 0)
      fastest.lanes = std::max(fastest.lanes, link_lanes(narrow<std::uint8_t>(1U << bit)));
  fastest.lane_rate = std::max(fastest_lane(kLaneRates, common(IB_PORT_LINK_SPEED_SUPPORTED_F)),
                               fastest_lane(kExtendedLaneRates, common(IB_PORT_LINK_SPEED_EXT_SUPPORTED_F)));
  return fastest;
}
std::uint8_t PortInfo::local_port() const {
  return narrow<std::uint8_t>(field(IB_PORT_LOCAL_PORT_F));
}
bool PortInfo::client_reregister() const {
  return field(IB_PORT_CLIENT_REREG_F) != 0;
}
PortInfo PortInfo::given() const {
  PortInfo result;
  for (const int name : {IB_PORT_MKEY_F, IB_PORT_GID_PREFIX_F}) result.set_field64(name, field64(name));
  for (const int name :
       {IB_PORT_LID_F, IB_PORT_SMLID_F, IB_PORT_MKEY_LEASE_F, IB_PORT_LINK_DOWN_DEF_F,
        IB_PORT_MKEY_PROT_BITS_F, IB_PORT_LMC_F, IB_PORT_NEIGHBOR_MTU_F, IB_PORT_SMSL_F, IB_PORT_OPER_VLS_F,
        IB_PORT_SUBN_TIMEOUT_F, IB_PORT_LOCAL_PHYS_ERR_F, IB_PORT_OVERRUN_ERR_F})
    result.set_field(name, field(name));
  return result;
}

void PortInfo::set_m_key(std::uint64_t key) {
  set_field64(IB_PORT_MKEY_F, key);
}
void PortInfo::set_gid_prefix(std::uint64_t prefix) {
  set_field64(IB_PORT_GID_PREFIX_F, prefix);
}
void PortInfo::set_lid(Lid lid) {
  set_field(IB_PORT_LID_F, lid.value());
}
void PortInfo::set_sm_lid(Lid lid) {
  set_field(IB_PORT_SMLID_F, lid.value());
}
void PortInfo::set_sm_sl(std::uint8_t sl) {
  set_field(IB_PORT_SMSL_F, sl);
}
void PortInfo::set_lmc(std::uint8_t lmc) {
  set_field(IB_PORT_LMC_F, lmc);
}
void PortInfo::set_state(PortState state) {
  set_field(IB_PORT_STATE_F, static_cast<std::uint32_t>(state));
}
void PortInfo::set_physical_state(std::uint8_t state) {
  set_field(IB_PORT_PHYS_STATE_F, state);
}
void PortInfo::set_link_down_default(std::uint8_t state) {
  set_field(IB_PORT_LINK_DOWN_DEF_F, state);
}
void PortInfo::set_neighbor_mtu(std::uint8_t mtu) {
  set_field(IB_PORT_NEIGHBOR_MTU_F, mtu);
}
void PortInfo::set_operational_vls(std::uint8_t vls) {
  set_field(IB_PORT_OPER_VLS_F, vls);
}
void PortInfo::set_subnet_timeout(std::uint8_t timeout) {
  set_field(IB_PORT_SUBN_TIMEOUT_F, timeout);
}
void PortInfo::set_client_reregister(bool on) {
  set_field(IB_PORT_CLIENT_REREG_F, on ? 1 : 0);
}
void PortInfo::set_m_key_protection(std::uint8_t bits) {
  set_field(IB_PORT_MKEY_PROT_BITS_F, bits);
}
void PortInfo::set_error_thresholds(std::uint8_t local_physical, std::uint8_t overrun) {
  set_field(IB_PORT_LOCAL_PHYS_ERR_F, local_physical);
  set_field(IB_PORT_OVERRUN_ERR_F, overrun);
}
void PortInfo::set_m_key_lease(std::chrono::seconds lease) {
  set_field(IB_PORT_MKEY_LEASE_F, narrow<std::uint16_t>(static_cast<std::uint32_t>(lease.count())));
}
void PortInfo::keep_link_width_and_speed() {
  set_field(IB_PORT_LINK_WIDTH_ENABLED_F, 0);
  set_field(IB_PORT_LINK_SPEED_ENABLED_F, 0);
  set_field(IB_PORT_LINK_SPEED_EXT_ENABLED_F, 0);
}

}  // namespace fabric::verbs
