#include "routing/frame.hpp"

#include <gtest/gtest.h>

namespace fabric::routing {
namespace {

TEST(Frame, RoundTrip) {
  FrameHeader header;
  header.flags = FrameHeader::kTurned;
  header.hop_limit = 17;
  header.destination = Lid(0x1234);
  header.source = Lid(0x5678);
  header.kind = FrameClass::stream;
  header.lane = 9;
  header.epoch = 0xA5;
  header.sequence = 0xDEADBEEF;
  header.flow_hash = 0x01020304;
  std::array<std::byte, FrameHeader::kSize> bytes{};
  header.encode(bytes);
  const auto decoded = FrameHeader::decode(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->flags, header.flags);
  EXPECT_EQ(decoded->hop_limit, header.hop_limit);
  EXPECT_EQ(decoded->destination, header.destination);
  EXPECT_EQ(decoded->source, header.source);
  EXPECT_EQ(decoded->kind, header.kind);
  EXPECT_EQ(decoded->lane, header.lane);
  EXPECT_EQ(decoded->epoch, header.epoch);
  EXPECT_EQ(decoded->sequence, header.sequence);
  EXPECT_EQ(decoded->flow_hash, header.flow_hash);
  EXPECT_EQ(bytes[2], std::byte{0x12}) << "network byte order";
}

TEST(Frame, RefusesShortOldAndUnknown) {
  std::array<std::byte, FrameHeader::kSize> bytes{};
  FrameHeader{}.encode(bytes);
  EXPECT_FALSE(FrameHeader::decode(std::span(bytes).first(15)));
  auto other_version = bytes;
  other_version[0] = std::byte{0x20};
  EXPECT_FALSE(FrameHeader::decode(other_version));
  auto unknown_class = bytes;
  unknown_class[6] = std::byte{0xF0};
  EXPECT_FALSE(FrameHeader::decode(unknown_class));
}

}  // namespace
}  // namespace fabric::routing
