#include <gtest/gtest.h>

#include <random>

#include "fabricd/ethernet/wire.hpp"

namespace fabric::daemon {
namespace {

Announcement sample() {
  Announcement announcement;
  announcement.identity = {Guid{0x0002c90300a1b2c3}, "h1", 1, 77, 3};
  announcement.service = 0xabcd;
  announcement.path_mtu = 4096;
  return announcement;
}

TEST(EthernetWire, AnnouncementHasItsBytesInPlace) {
  const auto bytes = encode(sample());
  const std::vector<int> expected = {'F',  'A',  'B', 'A', 1, 0,  0,    3,    0,    2, 0xc9, 3, 0,   0xa1,
                                     0xb2, 0xc3, 0,   0,   0, 77, 0xab, 0xcd, 0x10, 0, 1,    2, 'h', '1'};
  ASSERT_EQ(bytes.size(), expected.size());
  for (std::size_t i = 0; i < bytes.size(); ++i) EXPECT_EQ(std::to_integer<int>(bytes[i]), expected[i]) << i;
}

TEST(EthernetWire, AnnouncementComesBack) {
  Announcement announcement = sample();
  announcement.leaving = true;
  const auto back = decode_announcement(encode(announcement));
  ASSERT_TRUE(back);
  EXPECT_TRUE(back->leaving);
  EXPECT_EQ(back->identity.host, announcement.identity.host);
  EXPECT_EQ(back->identity.name, "h1");
  EXPECT_EQ(back->identity.port, 1);
  EXPECT_EQ(back->identity.incarnation, 77u);
  EXPECT_EQ(back->identity.version, 3);
  EXPECT_EQ(back->service, 0xabcd);
  EXPECT_EQ(back->path_mtu, 4096);
}

TEST(EthernetWire, NobodyIsHost0OrHasPort255) {
  ConnectionParameters parameters{.host = Guid{9}};
  EXPECT_TRUE(decode_parameters(encode(parameters)));
  Announcement announcement = sample();
  announcement.identity.host = parameters.host = Guid{};
  EXPECT_FALSE(decode_announcement(encode(announcement)));
  EXPECT_FALSE(decode_parameters(encode(parameters)));
  announcement.identity.host = parameters.host = Guid{9};
  announcement.identity.port = parameters.port = kNoPort.value();
  EXPECT_FALSE(decode_announcement(encode(announcement)));
  EXPECT_FALSE(decode_parameters(encode(parameters)));
}

TEST(EthernetWire, OfAnotherFormatOnlyTheFormatIsKnown) {
  auto bytes = encode(sample());
  bytes[4] = std::byte{9};
  bytes.resize(7);
  const auto back = decode_announcement(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->format, 9);
  EXPECT_EQ(back->identity.host, Guid{});
}

TEST(EthernetWire, LongNamesAreCutAndControlCharactersReplaced) {
  Announcement announcement = sample();
  announcement.identity.name = "\x1b[2J" + std::string(200, 'x');
  const auto bytes = encode(announcement);
  EXPECT_EQ(bytes.size(), kMaxAnnouncement - 2);  // 26 bytes before the name
  const auto back = decode_announcement(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->identity.name, "?[2J" + std::string(kMaxName - 4, 'x'));
}

TEST(EthernetWire, EveryTruncationIsRefused) {
  const auto bytes = encode(sample());
  for (std::size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(decode_announcement(std::span(bytes).first(length))) << length;
  const auto parameters = encode(ConnectionParameters{});
  EXPECT_EQ(parameters.size(), kConnectionParameters);
  for (std::size_t length = 0; length < parameters.size(); ++length)
    EXPECT_FALSE(decode_parameters(std::span(parameters).first(length))) << length;
  const auto rejection = encode(Rejection{1, "no"});
  for (std::size_t length = 0; length < rejection.size(); ++length)
    EXPECT_FALSE(decode_rejection(std::span(rejection).first(length))) << length;
}

TEST(EthernetWire, PrivateDataMayBePadded) {
  const ConnectionParameters parameters{
      ConnectionParameters::Purpose::control, Guid{5}, 1, 2, 3, 4, 1024, 17};
  auto bytes = encode(parameters);
  bytes.resize(56);
  const auto back = decode_parameters(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->purpose, ConnectionParameters::Purpose::control);
  EXPECT_EQ(back->host, Guid{5});
  EXPECT_EQ(back->port, 1);
  EXPECT_EQ(back->incarnation, 2u);
  EXPECT_EQ(back->version, 3);
  EXPECT_EQ(back->attempt, 4u);
  EXPECT_EQ(back->path_mtu, 1024);
  EXPECT_EQ(back->ack_timeout, 17);
  bytes[5] = std::byte{2};  // no such purpose
  EXPECT_FALSE(decode_parameters(bytes));

  auto refused = encode(Rejection{7, std::string(500, 'r')});
  EXPECT_LE(refused.size(), kMaxRejection);
  refused.resize(148);
  const auto reason = decode_rejection(refused);
  ASSERT_TRUE(reason);
  EXPECT_EQ(reason->version, 7);
  EXPECT_EQ(reason->reason.size(), kMaxReason);
}

TEST(EthernetWire, MessagesAreNotTakenForEachOther) {
  EXPECT_FALSE(decode_parameters(encode(sample())));
  EXPECT_FALSE(decode_announcement(encode(ConnectionParameters{})));
  EXPECT_FALSE(decode_rejection(encode(ConnectionParameters{})));
}

TEST(EthernetWire, NonsenseIsSurvived) {
  std::mt19937 random(20260101);
  for (int round = 0; round < 20000; ++round) {
    auto bytes = encode(sample());
    for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    bytes.resize(random() % (bytes.size() + 1));
    if (const auto back = decode_announcement(bytes)) {
      EXPECT_LE(back->identity.name.size(), kMaxName);
    }
    (void)decode_parameters(bytes);
    (void)decode_rejection(bytes);
  }
}

}  // namespace
}  // namespace fabric::daemon
