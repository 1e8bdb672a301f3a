// The subnet administrator core: what Linux and the tools ask, component masks, multicast, nonsense.
#include "fabricd/subnet/subnet_administrator.hpp"

#include <gtest/gtest.h>

#include <random>

#include "fabricd/subnet/administration/paths.hpp"
#include "tests/unit/subnet_simulation.hpp"

namespace fabric::daemon::subnet {
namespace {

using administration::Gid;
using verbs::load_big_endian;
using verbs::store_big_endian;

constexpr std::uint16_t kPath = 0x35, kNode = 0x11, kPort = 0x12, kMember = 0x38, kService = 0x31,
                        kInform = 0x03, kInformRecord = 0xF3;
constexpr Gid kBroadcast{0xFF, 0x12, 0x40, 0x1B, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF};

class SubnetAdministratorTest : public testing::Test {
 protected:
  SubnetAdministratorTest() : cable(Sma(Guid{0x10}, Guid{0x11}, 1), Sma(Guid{0x20}, Guid{0x22}, 2), 1) {
    Settings settings;
    settings.base_lids = {{Guid{0x10}, Lid{2}}, {Guid{0x20}, Lid{4}}};
    cable.plug();
    cable.start(0, settings);
    cable.start(1, settings);
    EXPECT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
    cable.run(50ms);
    prefix = cable.view(0).prefix;
    give(CableChanged{});
  }

  Mad request(MadMethod method, std::uint16_t attribute, std::uint64_t mask, std::uint64_t key = 0) {
    Mad mad(verbs::MadClass::subnet_administration, method, attribute, 0);
    mad.set_tid(42);
    store_big_endian<8>(mad.bytes(), 36, key);
    store_big_endian<8>(mad.bytes(), 48, mask);
    return mad;
  }
  static void put_gid(Mad& mad, std::size_t at, const Gid& gid) {
    std::copy(gid.begin(), gid.end(), mad.bytes().begin() + 56 + static_cast<std::ptrdiff_t>(at));
  }
  Gid gid(std::uint64_t guid) const {
    Gid result{};
    store_big_endian<8>(result, 0, prefix);
    store_big_endian<8>(result, 8, guid);
    return result;
  }
  /// Sends a request from a port; the answer, or nothing. Reports are kept.
  std::vector<std::uint8_t> answer(const Mad& mad, std::uint64_t from = 0x22, std::uint32_t qpn = 1) {
    const Lid lid = from == 0x22 ? cable.view(0).peer_lid() : cable.view(0).own_lid();
    return give(AdministrationReceived{mad, {.lid = lid, .qpn = Qpn{qpn}}});
  }
  std::vector<std::uint8_t> give(const AdministratorEvent& event, int side = 0) {
    std::vector<std::uint8_t> result;
    for (auto& action : administrator.handle(cable.now, cable.view(side), event)) {
      if (const auto* send = std::get_if<SendMad>(&action))
        reports.push_back(*send);
      else
        result = std::get<Answer>(action).bytes;
    }
    return result;
  }
  static std::uint16_t status(const std::vector<std::uint8_t>& bytes) {
    return bytes.empty() ? 0xFFFF : static_cast<std::uint16_t>(load_big_endian<2>(bytes, 4));
  }
  /// Number of records in a table.
  static std::size_t records(const std::vector<std::uint8_t>& bytes) {
    const std::size_t stride = 8 * load_big_endian<2>(bytes, 44);
    return stride == 0 ? 0 : (bytes.size() - 56) / stride;
  }
  Mad join(const Gid& mgid, std::uint64_t guid, std::uint8_t state, std::uint64_t mask,
           MadMethod method = MadMethod::set) {
    Mad mad = request(method, kMember, mask);
    put_gid(mad, 0, mgid);
    put_gid(mad, 16, gid(guid));
    store_big_endian<4>(mad.bytes(), 56 + 32, 0x0B1B);
    mad.bytes()[56 + 38] = 0x84;  // exactly 2048
    store_big_endian<2>(mad.bytes(), 56 + 40, 0xFFFF);
    mad.bytes()[56 + 42] = 0x83;  // exactly 10 Gbit/s
    mad.bytes()[56 + 48] = state;
    return mad;
  }

  Cable cable;
  SubnetAdministrator administrator;
  std::vector<SendMad> reports;
  std::uint64_t prefix = 0;
};

/// What IPoIB joins the broadcast group with: MGID, PORT_GID, P_KEY, JOIN_STATE.
constexpr std::uint64_t kFirstJoin = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 16;
/// Later joins: and Q_Key, MTU, rate, SL, flow label, traffic class, hop limit.
constexpr std::uint64_t kLaterJoin =
    kFirstJoin | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14;

TEST_F(SubnetAdministratorTest, ClassPortInfoHasSendOnlyFullMember) {
  const auto bytes = answer(request(MadMethod::get, 1, 0));
  ASSERT_EQ(status(bytes), 0);
  EXPECT_EQ(bytes.size(), 256U);
  EXPECT_EQ(bytes[3], 0x81);
  EXPECT_EQ(load_big_endian<8>(bytes, 8), 42U);
  EXPECT_EQ(load_big_endian<4>(bytes, 56 + 4) >> 5 & 1U << 12, 1U << 12);
}

TEST_F(SubnetAdministratorTest, TablesByComponentMask) {
  const auto all = answer(request(MadMethod::get_table, kNode, 0));
  EXPECT_EQ(records(all), 2U);
  EXPECT_EQ(all.size(), 56U + 2 * 112);
  EXPECT_EQ(all[24], 1) << "RMPP version";
  EXPECT_EQ(all[26] & 1, 1) << "RMPP active";
  Mad by_guid = request(MadMethod::get_table, kNode, 1 << 8);
  store_big_endian<8>(by_guid.bytes(), 56 + 4 + 20, 0x22);
  const auto one = answer(by_guid);
  ASSERT_EQ(records(one), 1U);
  EXPECT_EQ(load_big_endian<2>(one, 56), 4U);
  Mad by_lid = request(MadMethod::get, kPort, 1);
  store_big_endian<2>(by_lid.bytes(), 56, 5);  // the second LID of the other end's block
  const auto port = answer(by_lid);
  ASSERT_EQ(status(port), 0);
  EXPECT_EQ(load_big_endian<2>(port, 56), 4U);
  EXPECT_EQ(port[56 + 2], 2);
  // PortState, between other fields of less than a byte.
  Mad by_state = request(MadMethod::get_table, kPort, 1 << 15);
  by_state.bytes()[56 + 4 + 32] = 0x04;
  EXPECT_EQ(records(answer(by_state)), 2U);
  by_state.bytes()[56 + 4 + 32] = 0xF3;
  EXPECT_EQ(records(answer(by_state)), 0U);
}

TEST_F(SubnetAdministratorTest, CapabilityMaskMatch) {
  Mad by_capability = request(MadMethod::get_table, kPort, 1 << 7);
  store_big_endian<4>(by_capability.bytes(), 56 + 4 + 20, PortInfo::kCapabilityIsSm);
  EXPECT_EQ(records(answer(by_capability)), 0U) << "exactly";
  by_capability.set_modifier(1U << 31);
  EXPECT_EQ(records(answer(by_capability)), 2U);
}

TEST_F(SubnetAdministratorTest, StatusCodes) {
  EXPECT_EQ(status(answer(request(MadMethod::get, kNode, 0))), 0x0400) << "two for a Get";
  Mad nobody = request(MadMethod::get, kNode, 1);
  store_big_endian<2>(nobody.bytes(), 56, 999);
  EXPECT_EQ(status(answer(nobody)), 0x0300);
  EXPECT_EQ(status(answer(request(MadMethod::get, 0x77, 0))), 0x000C);
  EXPECT_EQ(status(answer(request(MadMethod::get_table, 0x15, 0))), 0) << "no switch, empty table";
  EXPECT_EQ(status(answer(request(MadMethod::get, 0x15, 0))), 0x0300);
  EXPECT_EQ(status(answer(request(MadMethod::set, kNode, 0))), 0x000C);
  EXPECT_EQ(status(answer(request(MadMethod::report, kNode, 0))), 0x0008);
  EXPECT_TRUE(answer(request(MadMethod::get_table, kNode, 0, 77)).empty()) << "wrong SM_Key";
  EXPECT_EQ(status(answer(request(MadMethod::get_table, 0x33, 0))), 0x0200) << "P_Keys for the trusted only";
  EXPECT_EQ(records(answer(request(MadMethod::get_table, 0x33, 0, 1))), 2U);
}

TEST_F(SubnetAdministratorTest, OnlyTheMasterAnswers) {
  EXPECT_TRUE(give(AdministrationReceived{request(MadMethod::get, 1, 0), {}}, 1).empty());
}

TEST_F(SubnetAdministratorTest, PathsForRdmaCm) {
  // DGID, SGID, P_KEY, NUMB_PATH, REVERSIBLE, SERVICE_ID, QOS_CLASS
  Mad query = request(MadMethod::get, kPath,
                      1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14);
  put_gid(query, 8, gid(0x22));
  put_gid(query, 24, gid(0x11));
  query.bytes()[56 + 49] = 0x81;
  store_big_endian<2>(query.bytes(), 56 + 50, 0xFFFF);
  const auto bytes = answer(query);
  ASSERT_EQ(status(bytes), 0);
  EXPECT_EQ(load_big_endian<2>(bytes, 56 + 40), 4U) << "DLID";
  EXPECT_EQ(load_big_endian<2>(bytes, 56 + 42), 2U) << "SLID";
  EXPECT_EQ(bytes[56 + 49], 0x80) << "reversible";
  EXPECT_EQ(bytes[56 + 54], 0x85) << "exactly 4096";
  put_gid(query, 8, gid(0x33));
  EXPECT_EQ(status(answer(query)), 0x0300) << "nobody has this GID";
}

TEST_F(SubnetAdministratorTest, PathSelectors) {
  const auto mtu = [&](std::uint8_t selector_and_value) -> int {
    Mad query = request(MadMethod::get, kPath, 1 << 2 | 1 << 3 | 1 << 16 | 1 << 17);
    put_gid(query, 8, gid(0x22));
    put_gid(query, 24, gid(0x11));
    query.bytes()[56 + 54] = selector_and_value;
    const auto bytes = answer(query);
    return status(bytes) == 0 ? bytes[56 + 54] & 0x3F : -1;
  };
  EXPECT_EQ(mtu(0x00 | 4), 5);
  EXPECT_EQ(mtu(0x00 | 5), -1);
  EXPECT_EQ(mtu(0x40 | 4), 3);
  EXPECT_EQ(mtu(0x40 | 1), -1);
  EXPECT_EQ(mtu(0x80 | 2), 2);
  EXPECT_EQ(mtu(0xC0), 5);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kPath, 0))), 4U);
  Mad one = request(MadMethod::get_table, kPath, 1 << 12);
  one.bytes()[56 + 49] = 1;
  EXPECT_EQ(records(answer(one)), 4U) << "one between each two ports";
}

TEST_F(SubnetAdministratorTest, IpoibBroadcastGroup) {
  const auto bytes = answer(join(kBroadcast, 0x22, 1, kFirstJoin));
  ASSERT_EQ(status(bytes), 0);
  EXPECT_EQ(load_big_endian<4>(bytes, 56 + 32), 0x0B1BU);
  EXPECT_EQ(load_big_endian<2>(bytes, 56 + 36), 0xC000U);
  EXPECT_EQ(bytes[56 + 38], 0x85) << "the cable's MTU";
  EXPECT_EQ(bytes[56 + 48], 0x21) << "link-local scope, full member";
  EXPECT_EQ(status(answer(join(kBroadcast, 0x22, 1, kFirstJoin, MadMethod::remove))), 0);
  EXPECT_EQ(status(answer(join(kBroadcast, 0x22, 1, kFirstJoin, MadMethod::remove))), 0x0200);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 1U) << "stays without members";
}

TEST_F(SubnetAdministratorTest, GroupsComeAndGoWithTheirMembers) {
  Gid mgid = kBroadcast;
  mgid[15] = 1;
  EXPECT_EQ(status(answer(join(mgid, 0x22, 1, kFirstJoin))), 0x0600) << "not enough to create it";
  EXPECT_EQ(status(answer(join(mgid, 0x22, 4, kLaterJoin))), 0x0200)
      << "send-only non-members create nothing";
  const auto made = answer(join(mgid, 0x22, 1, kLaterJoin));
  ASSERT_EQ(status(made), 0);
  EXPECT_EQ(load_big_endian<2>(made, 56 + 36), 0xC001U);
  EXPECT_EQ(made[56 + 38], 0x84);
  EXPECT_EQ(status(answer(join(mgid, 0x11, 8, kLaterJoin), 0x11)), 0);
  Mad other_qkey = join(mgid, 0x11, 1, kLaterJoin);
  store_big_endian<4>(other_qkey.bytes(), 56 + 32, 1);
  EXPECT_EQ(status(answer(other_qkey)), 0x0200);
  EXPECT_EQ(status(answer(join(mgid, 0x99, 1, kFirstJoin))), 0x0200) << "no such port";
  EXPECT_EQ(status(answer(join(mgid, 0x11, 0, kFirstJoin))), 0x0200);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 2U);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0, 1))), 2U) << "two members of one group";
  EXPECT_EQ(status(answer(join(mgid, 0x22, 1, kFirstJoin, MadMethod::remove))), 0);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 2U);
  EXPECT_EQ(status(answer(join(mgid, 0x11, 8, kFirstJoin, MadMethod::remove), 0x11)), 0);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 1U);
  give(CableChanged{}, 1);  // as a standby
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 1U);
}

TEST_F(SubnetAdministratorTest, RefusesMgidsThatNobodyMayAskFor) {
  for (const Gid& mgid :
       {Gid{0xFA, 0x12, 0x40, 0x1B}, Gid{0xFF, 0x22, 0x40, 0x1B}, Gid{0xFF, 0x12, 0xA0, 0x1B}})
    EXPECT_EQ(status(answer(join(mgid, 0x22, 1, kLaterJoin))), 0x0200);
}

TEST_F(SubnetAdministratorTest, ChoosesAnMgidWhenNoneIsGiven) {
  const auto made = answer(join(Gid{}, 0x22, 1, kLaterJoin));
  ASSERT_EQ(status(made), 0);
  EXPECT_EQ(made[56], 0xFF);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 2U);
}

TEST_F(SubnetAdministratorTest, SurvivesNonsense) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    Mad::Bytes bytes;
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    bytes[0] = 1;
    bytes[1] = 3;
    const std::uint8_t methods[] = {1, 2, 0x12, 0x14, 0x15, 6};
    bytes[3] = methods[random() % 6];
    bytes[16] = 0;
    if (random() % 2 == 0) bytes[17] = static_cast<std::uint8_t>(random() % 2 == 0 ? kMember : kPath);
    std::fill(bytes.begin() + 36, bytes.begin() + 44, std::uint8_t{0});
    if (random() % 2 == 0)  // often of a port that exists
      for (const std::size_t at : {8U, 16U, 24U}) {
        const Gid port = gid(random() % 2 == 0 ? 0x11 : 0x22);
        std::copy(port.begin(), port.end(), bytes.begin() + 56 + static_cast<std::ptrdiff_t>(at));
      }
    const auto result = answer(*Mad::decode(bytes), random() % 2 == 0 ? 0x11 : 0x22);
    ASSERT_GE(result.size(), 56U);
    EXPECT_EQ(result[3] & 0x80, 0x80);
  }
  EXPECT_LE(records(answer(request(MadMethod::get_table, kMember, 0))), 1024U) << "groups are bounded";
}

// --- tables that only tools ask for

TEST_F(SubnetAdministratorTest, TablesOfLanesAndKeys) {
  cable.run(500ms);
  const auto lanes = answer(request(MadMethod::get_table, 0x13, 0));
  EXPECT_EQ(records(lanes), 2U);
  EXPECT_EQ(lanes.size(), 56U + 2 * 16);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, 0x36, 0))), 8U) << "four blocks of each port";
  Mad block = request(MadMethod::get_table, 0x36, 1 << 0 | 1 << 2);
  store_big_endian<2>(block.bytes(), 56, 4);
  block.bytes()[56 + 3] = 3;
  EXPECT_EQ(records(answer(block)), 1U);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, 0x30, 0))), 2U);
}

TEST_F(SubnetAdministratorTest, PathToAMulticastGroup) {
  Mad query = request(MadMethod::get, kPath, 1 << 2);
  put_gid(query, 8, kBroadcast);
  const auto bytes = answer(query);
  ASSERT_EQ(status(bytes), 0);
  EXPECT_EQ(load_big_endian<2>(bytes, 56 + 40), 0xC000U);
  EXPECT_EQ(bytes[56 + 54], 0x85);
  query.bytes()[56 + 8 + 15] = 1;
  EXPECT_EQ(status(answer(query)), 0x0300) << "no such group";
}

TEST_F(SubnetAdministratorTest, MultiPathAnswersWithPathRecords) {
  Mad query = request(MadMethod::get_multi, 0x3A, 1 << 6 | 1 << 19 | 1 << 20);
  query.bytes()[56 + 5] = 0x7F;  // as many paths as there are
  query.bytes()[56 + 15] = 1;
  query.bytes()[56 + 16] = 2;
  put_gid(query, 24, gid(0x22));
  put_gid(query, 40, gid(0x11));
  put_gid(query, 56, gid(0x22));
  const auto bytes = answer(query);
  ASSERT_EQ(status(bytes), 0);
  EXPECT_EQ(bytes[3], 0x94);
  EXPECT_EQ(load_big_endian<2>(bytes, 16), kPath);
  ASSERT_EQ(records(bytes), 2U);
  EXPECT_EQ(load_big_endian<2>(bytes, 56 + 40), 2U);
  EXPECT_EQ(load_big_endian<2>(bytes, 56 + 64 + 40), 4U);
  query.bytes()[56 + 5] = 1;
  EXPECT_EQ(records(answer(query)), 1U);
  query.bytes()[56 + 16] = 11;
  EXPECT_EQ(status(answer(query)), 0x0200) << "more GIDs than there is room for";
  EXPECT_EQ(status(answer(request(MadMethod::get_multi, 0x3A, 1 << 19))), 0x0600);
  EXPECT_EQ(status(answer(request(MadMethod::get, 0x3A, 0))), 0x000C);
}

TEST_F(SubnetAdministratorTest, OthersMayNotChangeAMembership) {
  ASSERT_EQ(status(answer(join(kBroadcast, 0x22, 1, kFirstJoin), 0x22)), 0);
  EXPECT_EQ(status(answer(join(kBroadcast, 0x22, 1, kFirstJoin, MadMethod::remove), 0x11)), 0x0200);
  ASSERT_EQ(status(answer(join(kBroadcast, 0x11, 1, kFirstJoin), 0x22)), 0) << "by proxy";
  EXPECT_EQ(status(answer(join(kBroadcast, 0x11, 1, kFirstJoin, MadMethod::remove), 0x22)), 0);
  EXPECT_EQ(status(answer(join(kBroadcast, 0x22, 3, kFirstJoin, MadMethod::remove), 0x22)), 0x0200)
      << "more than was joined";
}

// --- services

class Services : public SubnetAdministratorTest {
 protected:
  static constexpr std::uint64_t kId = 1 << 0, kGid = 1 << 1, kPkey = 1 << 2, kLease = 1 << 4, kKey = 1 << 5;
  Mad service(MadMethod method, std::uint64_t id, std::uint32_t lease, std::uint8_t key,
              std::uint64_t mask = kId | kGid | kPkey | kLease | kKey, std::uint64_t sm_key = 0) {
    Mad mad = request(method, kService, mask, sm_key);
    store_big_endian<8>(mad.bytes(), 56, id);
    put_gid(mad, 8, gid(0x22));
    store_big_endian<2>(mad.bytes(), 56 + 24, 0xFFFF);
    store_big_endian<4>(mad.bytes(), 56 + 28, lease);
    mad.bytes()[56 + 32] = key;
    return mad;
  }
  std::size_t count() { return records(answer(request(MadMethod::get_table, kService, 0))); }
};

TEST_F(Services, LeaseRunsOut) {
  EXPECT_EQ(status(answer(service(MadMethod::set, 7, 4, 0))), 0);
  EXPECT_EQ(status(answer(service(MadMethod::set, 8, 0xFFFFFFFF, 0))), 0);
  EXPECT_EQ(count(), 2U);
  cable.run(1500ms);
  const auto seven = answer(service(MadMethod::get, 7, 0, 0, kId));
  ASSERT_EQ(status(seven), 0);
  EXPECT_EQ(load_big_endian<4>(seven, 56 + 28), 3U) << "what is left of it";
  cable.run(2499ms);
  EXPECT_EQ(count(), 2U);
  cable.run(1ms);
  EXPECT_EQ(count(), 1U);
  EXPECT_EQ(status(answer(service(MadMethod::set, 8, 1, 0))), 0) << "advertised anew";
  cable.run(1s);
  EXPECT_EQ(count(), 0U);
}

TEST_F(Services, KeyProtects) {
  EXPECT_EQ(status(answer(service(MadMethod::set, 7, 100, 5))), 0);
  EXPECT_EQ(status(answer(service(MadMethod::set, 7, 100, 6), 0x11)), 0x0200);
  EXPECT_EQ(status(answer(service(MadMethod::remove, 7, 100, 6), 0x11)), 0x0200);
  EXPECT_EQ(answer(service(MadMethod::get, 7, 0, 0, kId))[56 + 32], 0) << "not told to everybody";
  EXPECT_EQ(answer(service(MadMethod::get, 7, 0, 0, kId, 1))[56 + 32], 5);
  EXPECT_EQ(status(answer(service(MadMethod::remove, 7, 100, 5), 0x11)), 0);
  EXPECT_EQ(status(answer(service(MadMethod::remove, 7, 100, 5))), 0x0300);
  EXPECT_EQ(status(answer(service(MadMethod::set, 7, 100, 5))), 0);
  EXPECT_EQ(status(answer(service(MadMethod::remove, 7, 100, 0))), 0) << "its own port needs no key";
  EXPECT_EQ(status(answer(service(MadMethod::set, 7, 100, 5, kId))), 0x0200) << "without a GID";
}

TEST_F(Services, StayWhileTheCableIsOutAndAreBounded) {
  for (std::uint64_t id = 0; id < 1024; ++id)
    ASSERT_EQ(status(answer(service(MadMethod::set, id, 0xFFFFFFFF, 0))), 0);
  EXPECT_EQ(status(answer(service(MadMethod::set, 5000, 0xFFFFFFFF, 0))), 0x0100);
  cable.unplug();
  cable.run(50ms);
  give(CableChanged{});
  cable.plug();
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  give(CableChanged{});
  EXPECT_EQ(count(), 1024U);
}

// --- events

class Events : public SubnetAdministratorTest {
 protected:
  static constexpr std::uint16_t kAny = 0xFFFF;
  Mad inform(bool subscribe, std::uint16_t trap, std::uint32_t qpn = 0, std::uint64_t sm_key = 0) {
    Mad mad = request(MadMethod::set, kInform, 0, sm_key);
    auto& bytes = mad.bytes();
    store_big_endian<2>(bytes, 56 + 16, kAny);  // every LID
    bytes[56 + 22] = 1;                         // generic
    bytes[56 + 23] = subscribe ? 1 : 0;
    store_big_endian<2>(bytes, 56 + 24, kAny);  // every type
    store_big_endian<2>(bytes, 56 + 26, trap);
    store_big_endian<3>(bytes, 56 + 28, qpn);
    bytes[56 + 31] = 14;  // 67 ms to answer
    store_big_endian<3>(bytes, 56 + 33, 0xFFFFFF);
    return mad;
  }
  static TrapReceived trap(std::uint16_t number, Lid issuer) {
    std::array<std::uint8_t, 64> bytes{};
    bytes[0] = 0x80 | 1;
    store_big_endian<3>(bytes, 1, 1);
    store_big_endian<2>(bytes, 4, number);
    store_big_endian<2>(bytes, 6, issuer.value());
    return {verbs::NoticeAttribute(std::span<const std::uint8_t, 64>(bytes))};
  }
  std::size_t subscriptions(std::uint64_t sm_key = 0) {
    return records(answer(request(MadMethod::get_table, kInformRecord, 0, sm_key)));
  }
};

TEST_F(Events, SubscribedOnesAreReported) {
  const auto answered = answer(inform(true, 144), 0x22, 77);
  ASSERT_EQ(status(answered), 0);
  EXPECT_EQ(answered[3], 0x81);
  EXPECT_EQ(load_big_endian<3>(answered, 56 + 28), 0U) << "the request, as it was";
  give(trap(144, Lid{4}));
  ASSERT_EQ(reports.size(), 1U);
  const auto& report = reports[0];
  EXPECT_EQ(report.mad.method(), MadMethod::report);
  EXPECT_EQ(report.mad.attribute(), 2);
  EXPECT_EQ(report.destination.qpn, Qpn{77}) << "to whom it came from";
  EXPECT_EQ(report.destination.lid, Lid{4});
  EXPECT_EQ(report.timeout, 100ms);
  EXPECT_EQ(load_big_endian<2>(report.mad.bytes(), 56 + 4), 144U);
  const Gid issuer = gid(0x22);
  EXPECT_TRUE(std::equal(issuer.begin(), issuer.end(), report.mad.bytes().begin() + 56 + 64));
  give(trap(128, Lid{4}));
  EXPECT_EQ(reports.size(), 1U) << "not subscribed";
  give(trap(144, Lid{999}));
  EXPECT_EQ(reports.size(), 1U) << "of nobody";
}

TEST_F(Events, UnconfirmedReportsAreSentAgain) {
  ASSERT_EQ(status(answer(inform(true, 144), 0x22, 77)), 0);
  give(trap(144, Lid{4}));
  const auto tid = static_cast<std::uint32_t>(reports[0].mad.tid());
  for (std::size_t i = 2; i <= 4; ++i) {
    give(ReportTimedOut{tid});
    ASSERT_EQ(reports.size(), i);
    EXPECT_EQ(reports.back().mad.tid(), tid);
  }
  give(ReportTimedOut{tid});
  EXPECT_EQ(reports.size(), 4U);
  EXPECT_EQ(administrator.counters().subscriptions.unconfirmed, 1U);
  EXPECT_EQ(subscriptions(), 1U) << "it may have been busy";
  give(trap(144, Lid{2}));
  Mad confirmation = reports.back().mad;
  confirmation.set_method(MadMethod::report_response);
  give(AdministrationReceived{confirmation, {.lid = Lid{4}, .qpn = Qpn{77}}});
  EXPECT_EQ(administrator.counters().subscriptions.confirmed, 1U);
  give(ReportTimedOut{static_cast<std::uint32_t>(confirmation.tid())});
  EXPECT_EQ(reports.size(), 5U) << "nothing more to say";
}

TEST_F(Events, SubscriptionsEnd) {
  ASSERT_EQ(status(answer(inform(true, 144), 0x22, 77)), 0);
  ASSERT_EQ(status(answer(inform(true, 144), 0x22, 77)), 0) << "once is enough";
  ASSERT_EQ(status(answer(inform(true, 128), 0x22, 77)), 0);
  EXPECT_EQ(subscriptions(), 2U);
  const auto all = answer(request(MadMethod::get_table, kInformRecord, 0, 1));
  EXPECT_EQ(load_big_endian<3>(all, 56 + 24 + 28), 77U);
  const auto hidden = answer(request(MadMethod::get_table, kInformRecord, 0));
  EXPECT_EQ(load_big_endian<3>(hidden, 56 + 24 + 28), 0U) << "for the trusted only";
  EXPECT_EQ(status(answer(inform(false, 144, 78), 0x22, 1)), 0x0200) << "another queue pair's";
  EXPECT_EQ(status(answer(inform(false, 144, 77), 0x11, 1)), 0x0200) << "another port's";
  EXPECT_EQ(status(answer(inform(false, 144, 77), 0x22, 1)), 0);
  EXPECT_EQ(subscriptions(), 1U);
  give(trap(144, Lid{4}));
  EXPECT_TRUE(reports.empty());
  cable.unplug();
  cable.run(100ms);
  give(CableChanged{});
  cable.plug();
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(subscriptions(), 0U) << "gone with their port";
}

TEST_F(Events, SecurityTrapsForTheTrustedOnly) {
  EXPECT_EQ(status(answer(inform(true, 256))), 0x0200);
  EXPECT_EQ(status(answer(inform(true, kAny))), 0);
  give(trap(256, Lid{4}));
  EXPECT_TRUE(reports.empty());
  EXPECT_EQ(status(answer(inform(true, 256, 0, 1))), 0);
  give(trap(256, Lid{4}));
  EXPECT_EQ(reports.size(), 1U);
}

TEST_F(Events, OfTheSubnetManagerItself) {
  ASSERT_EQ(status(answer(inform(true, kAny), 0x11)), 0);
  Gid mgid = kBroadcast;
  mgid[15] = 1;
  ASSERT_EQ(status(answer(join(mgid, 0x22, 1, kLaterJoin))), 0);
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(load_big_endian<2>(reports[0].mad.bytes(), 56 + 4), 66U) << "group created";
  EXPECT_TRUE(std::equal(mgid.begin(), mgid.end(), reports[0].mad.bytes().begin() + 56 + 16));
  cable.unplug();
  cable.run(100ms);
  give(CableChanged{});
  cable.plug();
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  reports.clear();
  give(CableChanged{});
  std::vector<std::uint64_t> numbers;
  for (const auto& report : reports) numbers.push_back(load_big_endian<2>(report.mad.bytes(), 56 + 4));
  EXPECT_EQ(numbers, (std::vector<std::uint64_t>{65, 67, 64}))
      << "the port has gone, its group too, and is back";
}

TEST_F(Events, AreBounded) {
  for (std::uint32_t qpn = 2; qpn < 258; ++qpn) ASSERT_EQ(status(answer(inform(true, 144), 0x22, qpn)), 0);
  EXPECT_EQ(status(answer(inform(true, 144), 0x22, 999)), 0x0100);
  for (int i = 0; i < 10; ++i) give(trap(144, Lid{4}));
  EXPECT_EQ(reports.size(), 1024U);
  EXPECT_EQ(administrator.counters().subscriptions.dropped, 10U * 256 - 1024);
}

TEST(RateCode, OfWidthAndSpeed) {
  std::array<std::uint8_t, 64> bytes{};
  bytes[31] = 2;     // 4x
  bytes[35] = 0x40;  // 10 Gbit/s a lane
  EXPECT_EQ(administration::rate_code(PortInfo(std::span<const std::uint8_t, 64>(bytes))), 7);
  bytes[62] = 0x20;  // extended: 25 Gbit/s
  EXPECT_EQ(administration::rate_code(PortInfo(std::span<const std::uint8_t, 64>(bytes))), 16);
}

}  // namespace
}  // namespace fabric::daemon::subnet
