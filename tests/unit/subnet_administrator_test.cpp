// The subnet administrator core: what Linux and the tools ask, component masks, multicast, nonsense.
#include "fabricd/subnet/subnet_administrator.hpp"

#include <gtest/gtest.h>

#include <random>

#include "tests/unit/subnet_simulation.hpp"

namespace fabric::daemon::subnet {
namespace {

using verbs::load_big_endian;
using verbs::store_big_endian;

constexpr std::uint16_t kPath = 0x35, kNode = 0x11, kPort = 0x12, kMember = 0x38;
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
  std::vector<std::uint8_t> answer(const Mad& mad) {
    const auto result = administrator.handle(cable.view(0), mad);
    return result ? result->bytes : std::vector<std::uint8_t>{};
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
  EXPECT_EQ(status(answer(request(MadMethod::set, kNode, 0))), 0x0200);
  EXPECT_EQ(status(answer(request(MadMethod::report, kNode, 0))), 0x0008);
  EXPECT_TRUE(answer(request(MadMethod::get_table, kNode, 0, 77)).empty()) << "wrong SM_Key";
  EXPECT_EQ(status(answer(request(MadMethod::get_table, 0x33, 0))), 0x0200) << "P_Keys for the trusted only";
  EXPECT_EQ(records(answer(request(MadMethod::get_table, 0x33, 0, 1))), 2U);
}

TEST_F(SubnetAdministratorTest, OnlyTheMasterAnswers) {
  EXPECT_FALSE(administrator.handle(cable.view(1), request(MadMethod::get, 1, 0)));
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
  EXPECT_EQ(bytes[56 + 49], 0x81);
  EXPECT_EQ(bytes[56 + 54], 0x85) << "exactly 4096";
  put_gid(query, 8, gid(0x33));
  EXPECT_EQ(status(answer(query)), 0x0500);
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
  EXPECT_EQ(records(answer(one)), 1U);
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
  EXPECT_EQ(status(answer(join(mgid, 0x11, 8, kLaterJoin))), 0);
  Mad other_qkey = join(mgid, 0x11, 1, kLaterJoin);
  store_big_endian<4>(other_qkey.bytes(), 56 + 32, 1);
  EXPECT_EQ(status(answer(other_qkey)), 0x0200);
  EXPECT_EQ(status(answer(join(mgid, 0x99, 1, kFirstJoin))), 0x0200) << "no such port";
  EXPECT_EQ(status(answer(join(mgid, 0x11, 0, kFirstJoin))), 0x0200);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 2U);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0, 1))), 2U) << "two members of one group";
  EXPECT_EQ(status(answer(join(mgid, 0x22, 1, kFirstJoin, MadMethod::remove))), 0);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 2U);
  EXPECT_EQ(status(answer(join(mgid, 0x11, 8, kFirstJoin, MadMethod::remove))), 0);
  EXPECT_EQ(records(answer(request(MadMethod::get_table, kMember, 0))), 1U);
  administrator.forget();
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
    const auto result = administrator.handle(cable.view(0), *Mad::decode(bytes));
    ASSERT_TRUE(result);
    EXPECT_GE(result->bytes.size(), 56U);
    EXPECT_EQ(result->bytes[3] & 0x80, 0x80);
  }
  EXPECT_LE(records(answer(request(MadMethod::get_table, kMember, 0))), 1024U) << "groups are bounded";
}

TEST(RateCode, OfWidthAndSpeed) {
  std::array<std::uint8_t, 64> bytes{};
  bytes[31] = 2;     // 4x
  bytes[35] = 0x40;  // 10 Gbit/s a lane
  EXPECT_EQ(rate_code(PortInfo(std::span<const std::uint8_t, 64>(bytes))), 7);
  bytes[62] = 0x20;  // extended: 25 Gbit/s
  EXPECT_EQ(rate_code(PortInfo(std::span<const std::uint8_t, 64>(bytes))), 16);
}

}  // namespace
}  // namespace fabric::daemon::subnet
