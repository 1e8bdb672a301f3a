// Codecs of management datagrams: positions of fields against bytes written down by hand from the
// specification's tables, and totality over random bytes.
#include "verbs/mad.hpp"

#include <gtest/gtest.h>

#include <random>

namespace fabric::verbs {
namespace {

TEST(Mad, DecodesOnlyWhole) {
  std::array<std::uint8_t, 257> bytes{};
  bytes[0] = 1;
  EXPECT_FALSE(Mad::decode(std::span(bytes).first(255)));
  EXPECT_FALSE(Mad::decode(bytes));
  EXPECT_FALSE(Mad::decode({}));
  EXPECT_TRUE(Mad::decode(std::span(bytes).first(256)));
  bytes[0] = 2;
  EXPECT_FALSE(Mad::decode(std::span(bytes).first(256)));
}

TEST(Mad, DirectedRouteRequest) {
  Mad mad = directed_route_request(MadMethod::get, SmAttribute::port_info, 2, 2);
  mad.set_tid(0x0102030405060708);
  const auto& b = mad.bytes();
  EXPECT_EQ(b[0], 1);
  EXPECT_EQ(b[1], 0x81);
  EXPECT_EQ(b[2], 1);
  EXPECT_EQ(b[3], 0x01);
  EXPECT_EQ(b[6], 0);  // hop pointer
  EXPECT_EQ(b[7], 1);  // hop count
  EXPECT_EQ(b[8], 0x01);
  EXPECT_EQ(b[15], 0x08);
  EXPECT_EQ(b[17], 0x15);
  EXPECT_EQ(b[23], 2);
  EXPECT_EQ(b[32], 0xFF);
  EXPECT_EQ(b[35], 0xFF);
  EXPECT_EQ(b[129], 2);
  EXPECT_EQ(directed_route_request(MadMethod::get, SmAttribute::port_info, 2, 0).hop_count(), 0);

  Mad response = response_to(mad);
  EXPECT_EQ(response.method(), MadMethod::get_response);
  EXPECT_EQ(response.bytes()[4], 0x80);  // direction
  EXPECT_EQ(response.status(), 0);
  response.set_status(0x1C);
  EXPECT_EQ(response.bytes()[4], 0x80);
  EXPECT_EQ(response.status(), 0x1C);
  EXPECT_TRUE(response.is_response());
}

TEST(Mad, ResponsesByMethod) {
  EXPECT_EQ(response_to(Mad(MadClass::subnet_lid_routed, MadMethod::set, 0x20, 1)).method(),
            MadMethod::get_response);
  EXPECT_EQ(response_to(Mad(MadClass::subnet_lid_routed, MadMethod::trap, 2, 0)).method(),
            MadMethod::trap_repress);
  EXPECT_EQ(response_to(Mad(MadClass::subnet_administration, MadMethod::get_table, 0x35, 0)).method(),
            MadMethod::get_table_response);
  EXPECT_EQ(Mad(MadClass::subnet_administration, MadMethod::get, 0x35, 0).class_version(), 2);
}

TEST(Mad, VendorHeader) {
  Mad mad(MadClass::vendor_handshake, MadMethod::send, 1, 0);
  mad.set_oui(0x02FAB0);
  EXPECT_EQ(mad.bytes()[37], 0x02);
  EXPECT_EQ(mad.bytes()[38], 0xFA);
  EXPECT_EQ(mad.bytes()[39], 0xB0);
  EXPECT_EQ(mad.oui(), 0x02FAB0U);
  EXPECT_EQ(mad.vendor_data().data(), mad.bytes().data() + 40);
}

TEST(PortInfo, FieldsAreWhereTheSpecificationHasThem) {
  std::array<std::uint8_t, 64> bytes{};
  store_big_endian<8>(bytes, 0, 0x1122334455667788);  // M_Key
  store_big_endian<8>(bytes, 8, 0xFE80000000000001);  // GidPrefix
  store_big_endian<2>(bytes, 16, 0x0102);             // LID
  store_big_endian<2>(bytes, 18, 0x0304);             // MasterSMLID
  store_big_endian<4>(bytes, 20, 0x02514848 | 2);     // CapabilityMask
  bytes[28] = 2;                                      // LocalPortNum
  bytes[30] = 0x1B;                                   // LinkWidthSupported
  bytes[31] = 8;                                      // LinkWidthActive
  bytes[32] = 0x74;                                   // LinkSpeedSupported, PortState
  bytes[33] = 0x52;                                   // PortPhysicalState, LinkDownDefaultState
  bytes[34] = 0xC1;                                   // M_KeyProtectBits, LMC
  bytes[35] = 0x4F;                                   // LinkSpeedActive, LinkSpeedEnabled
  bytes[36] = 0x53;                                   // NeighborMTU, MasterSMSL
  bytes[37] = 0x40;                                   // VLCap, InitType
  bytes[41] = 0x05;                                   // InitTypeReply, MTUCap
  bytes[43] = 0x30;                                   // OperationalVLs
  bytes[51] = 0x92;                                   // ClientReregister, SubnetTimeOut
  PortInfo info{std::span<const std::uint8_t, 64>(bytes)};
  EXPECT_EQ(info.m_key(), 0x1122334455667788U);
  EXPECT_EQ(info.gid_prefix(), 0xFE80000000000001U);
  EXPECT_EQ(info.lid(), Lid{0x0102});
  EXPECT_EQ(info.sm_lid(), Lid{0x0304});
  EXPECT_TRUE(info.is_sm());
  EXPECT_EQ(info.local_port(), 2);
  EXPECT_EQ(info.state(), PortState::active);
  EXPECT_EQ(info.physical_state(), 5);
  EXPECT_EQ(info.lmc(), 1);
  EXPECT_EQ(info.link_speed(), (LinkSpeed{12, 100}));
  EXPECT_EQ(info.fastest_link_speed(info), (LinkSpeed{12, 100}));
  bytes[30] = 0x13;
  bytes[32] = 0x34;
  bytes[62] = 0x17;  // LinkSpeedExtActive, LinkSpeedExtSupported
  const PortInfo other{std::span<const std::uint8_t, 64>(bytes)};
  EXPECT_EQ(other.link_speed(), (LinkSpeed{12, 140}));
  EXPECT_EQ(info.fastest_link_speed(other), (LinkSpeed{4, 50})) << "1x, 2x and 4x, of the older speeds";
  EXPECT_EQ(other.fastest_link_speed(other), (LinkSpeed{4, 500}));
  EXPECT_EQ(lanes_text(other.link_speed()) + " " + lane_rate_text(other.link_speed()), "12x 14 Gbit/s");
  EXPECT_EQ(lane_rate_text({4, 25}), "2.5 Gbit/s");
  EXPECT_EQ(lane_rate_text({}), "unknown");
  EXPECT_EQ(info.neighbor_mtu(), 5);
  EXPECT_EQ(info.sm_sl(), 3);
  EXPECT_EQ(info.vl_cap(), 4);
  EXPECT_EQ(info.mtu_cap(), 5);
  EXPECT_EQ(info.operational_vls(), 3);
  EXPECT_EQ(info.subnet_timeout(), 18);
  EXPECT_TRUE(info.client_reregister());

  const auto before = info.bytes();
  info.set_lid(Lid{0x0102});
  info.set_lmc(1);
  info.set_state(PortState::active);
  info.set_neighbor_mtu(5);
  info.set_operational_vls(3);
  info.set_subnet_timeout(18);
  info.set_client_reregister(true);
  EXPECT_EQ(info.bytes(), before) << "setting what is there already must not touch neighbouring fields";
  info.set_m_key_lease(std::chrono::seconds{7});
  EXPECT_EQ(info.bytes()[27], 7);
  info.set_state(PortState::no_change);
  EXPECT_EQ(info.bytes()[32], 0x70);
}

TEST(NodeInfo, Fields) {
  std::array<std::uint8_t, 64> bytes{};
  bytes[2] = 1;
  bytes[3] = 2;
  store_big_endian<8>(bytes, 4, 11);
  store_big_endian<8>(bytes, 12, 12);
  store_big_endian<8>(bytes, 20, 13);
  store_big_endian<2>(bytes, 28, 128);
  bytes[36] = 2;
  const NodeInfo info{std::span<const std::uint8_t, 64>(bytes)};
  EXPECT_EQ(info.type(), NodeType::channel_adapter);
  EXPECT_EQ(info.port_count(), 2);
  EXPECT_EQ(info.system_image_guid(), Guid{11});
  EXPECT_EQ(info.node_guid(), Guid{12});
  EXPECT_EQ(info.port_guid(), Guid{13});
  EXPECT_EQ(info.partition_cap(), 128);
  EXPECT_EQ(info.local_port(), 2);
}

TEST(SmInfo, PriorityAndState) {
  SmInfo info;
  info.set_guid(Guid{0xA});
  info.set_priority_and_state(15, SmState::master);
  info.set_activity(77);
  EXPECT_EQ(info.bytes()[20], 0xF3);
  EXPECT_EQ(info.priority(), 15);
  EXPECT_EQ(info.state(), SmState::master);
  EXPECT_EQ(info.activity(), 77U);
  EXPECT_EQ(info.guid(), Guid{0xA});
}

TEST(NodeDescription, IsSafeToShow) {
  std::array<std::uint8_t, 64> bytes;
  bytes.fill('x');
  EXPECT_EQ(node_description(bytes), std::string(64, 'x'));
  bytes[1] = 0x1B;
  bytes[2] = 0xC3;  // half of a character: JSON with it cannot be read
  bytes[3] = 0x7F;
  bytes[4] = 0;
  EXPECT_EQ(node_description(bytes), "x???");
}

TEST(Mad, EveryAccessorIsTotal) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::array<std::uint8_t, 256> bytes;
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    bytes[0] = 1;
    const auto mad = Mad::decode(bytes);
    ASSERT_TRUE(mad);
    (void)mad->status();
    const PortInfo port(mad->smp_data());
    (void)to_string(port.state());
    const SmInfo sm(mad->smp_data());
    (void)to_string(sm.state());
    (void)node_description(mad->smp_data());
    const PkeyTable pkeys(mad->smp_data());
    (void)pkeys.pkey(random() % 1000);
    const Mad response = response_to(*mad);
    EXPECT_TRUE(response.is_response());
    EXPECT_EQ(response.tid(), mad->tid());
  }
}

}  // namespace
}  // namespace fabric::verbs
