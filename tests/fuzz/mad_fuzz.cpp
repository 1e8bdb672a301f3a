// Management datagrams: any bytes either are not one, or every accessor gives a value.
//
// Subjects: verbs/mad.cpp
#include "tests/fuzz/input.hpp"
#include "verbs/mad.hpp"

using namespace fabric;
using namespace fabric::verbs;

namespace {

/// So that no accessor is optimised away.
volatile std::uint64_t sink;
void use(std::uint64_t value) {
  sink = value;
}

void use_all(const Mad& mad) {
  use(mad.class_version() + mad.status() + mad.tid() + mad.attribute() + mad.modifier() + mad.m_key() +
      mad.hop_count() + mad.oui() + static_cast<unsigned>(mad.is_response()) +
      static_cast<unsigned>(mad.is_subnet_management()));
  for (const char c : node_description(mad.smp_data()))
    FUZZ_REQUIRE(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
  const NodeInfo node(mad.smp_data());
  use(static_cast<unsigned>(node.type()) + node.port_count() + node.system_image_guid().value() +
      node.node_guid().value() + node.port_guid().value() + node.partition_cap() + node.local_port());
  const SmInfo manager(mad.smp_data());
  use(manager.guid().value() + manager.sm_key() + manager.activity() + manager.priority());
  use(to_string(manager.state()).size());
  const NoticeAttribute notice(mad.smp_data());
  use(notice.type() + notice.producer() + notice.trap() + notice.issuer().value() +
      static_cast<unsigned>(notice.is_generic()));
  for (std::size_t i = 0; i <= PkeyTable::kBlock; ++i) use(PkeyTable(mad.smp_data()).pkey(i));
  for (std::size_t i = 0; i <= GuidInfo::kBlock; ++i) use(GuidInfo(mad.smp_data()).guid(i).value());
}

/// What is not set stays; what is set can be read, as far as the field is wide.
void change(PortInfo info, fuzz::Input& in) {
  const PortInfo before = info;
  const Lid lid{in.number<std::uint16_t>()}, sm_lid{in.number<std::uint16_t>()};
  const auto prefix = in.number<std::uint64_t>(), key = in.number<std::uint64_t>();
  info.set_m_key(key);
  info.set_gid_prefix(prefix);
  info.set_lid(lid);
  info.set_sm_lid(sm_lid);
  FUZZ_REQUIRE(info.m_key() == key && info.gid_prefix() == prefix && info.lid() == lid &&
               info.sm_lid() == sm_lid);
  info.set_sm_sl(in.byte());
  info.set_lmc(in.byte());
  info.set_state(PortState{in.byte()});
  info.set_physical_state(in.byte());
  info.set_link_down_default(in.byte());
  info.set_neighbor_mtu(in.byte());
  info.set_operational_vls(in.byte());
  info.set_subnet_timeout(in.byte());
  info.set_client_reregister(in.flag());
  info.set_m_key_protection(in.byte());
  info.set_m_key_lease(std::chrono::seconds(in.number<std::uint16_t>()));
  info.keep_link_width_and_speed();
  use(to_string(info.state()).size() + info.physical_state() + lanes_text(info.link_speed()).size() +
      lane_rate_text(info.fastest_link_speed(before)).size() + info.local_port() + info.guid_cap());
  FUZZ_REQUIRE(info.capability_mask() == before.capability_mask() && info.mtu_cap() == before.mtu_cap() &&
               info.vl_cap() == before.vl_cap() && info.m_key() == key && info.lid() == lid);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto mad = Mad::decode({data, size});
  FUZZ_REQUIRE(mad.has_value() == (size == Mad::kSize && data[0] == 1));
  // Whatever the length is, its first 256 bytes are looked at.
  fuzz::Input in(data, size);
  std::array<std::uint8_t, Mad::kSize> whole{};
  in.fill(whole);
  whole[0] = 1;
  const Mad any = *Mad::decode(whole);
  use_all(any);
  const Mad response = response_to(any);
  FUZZ_REQUIRE(response.tid() == any.tid() && response.attribute() == any.attribute());
  FUZZ_REQUIRE(response.is_response() && response.status() == 0);
  change(PortInfo(any.smp_data()), in);
  return 0;
}
