#include "routing/messages.hpp"

#include <gtest/gtest.h>

#include <random>

namespace fabric::routing {
namespace {

Advertisement random_advertisement(std::mt19937& random) {
  Advertisement result;
  result.origin = Guid(random() + 1ull);
  result.sequence = 1 + random();
  result.incarnation = random();
  result.map = random();
  result.priority = static_cast<std::uint8_t>(random());
  result.drained = random() % 2 == 0;
  if (random() % 2 == 0) {
    result.claim = static_cast<Claim>(1 + random() % 3);
    result.index = HostIndex(static_cast<std::uint16_t>(1 + random() % kMaxHostIndex.value()));
  }
  result.name = std::string(random() % (kMaxName + 1), 'x');
  for (unsigned i = random() % 5; i > 0; --i)
    result.links.push_back({PortIndex(static_cast<std::uint8_t>(result.links.size() * 2)),
                            Guid(result.origin.value() + 1 + random()), PortIndex(3), random() % 2 == 0,
                            static_cast<std::uint32_t>(1 + random() % kMaxCost),
                            static_cast<std::uint32_t>(random())});
  for (unsigned i = random() % 5; i > 0; --i) {
    Prefix prefix;
    for (auto& byte : prefix.address) byte = static_cast<std::uint8_t>(random());
    prefix.length = static_cast<std::uint8_t>(random() % 129);
    result.prefixes.push_back(prefix);
  }
  return result;
}

TEST(Messages, AdvertisementsSurviveAndTruncatedOnesDoNot) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Advertisement advertisement = random_advertisement(random);
    auto bytes = encode(advertisement);
    EXPECT_EQ(decode_advertisement(bytes), advertisement);
    const auto key = decode_key(bytes);
    ASSERT_TRUE(key);
    EXPECT_EQ(key->origin, advertisement.origin);
    EXPECT_EQ(key->sequence, advertisement.sequence);
    EXPECT_EQ(key->incarnation, advertisement.incarnation);
    for (std::size_t size = 0; size < bytes.size(); ++size)
      EXPECT_FALSE(decode_advertisement(std::span(bytes).first(size))) << size;
    bytes.push_back(std::byte{0});
    EXPECT_FALSE(decode_advertisement(bytes)) << "something left over";
  }
}

TEST(Messages, WhatMakesNoSenseDoesNotDecode) {
  std::mt19937 random(1);
  Advertisement good = random_advertisement(random);
  good.links = {{PortIndex(0), Guid(7), PortIndex(1), true, 5, 100},
                {PortIndex(1), Guid(8), PortIndex(1), true, 5, 100}};
  good.claim = Claim::held;
  good.index = HostIndex(3);
  ASSERT_TRUE(decode_advertisement(encode(good)));
  const auto refused = [&](auto&& spoil) {
    Advertisement bad = good;
    spoil(bad);
    return !decode_advertisement(encode(bad));
  };
  EXPECT_TRUE(refused([](auto& a) { a.origin = Guid(0); }));
  EXPECT_TRUE(refused([](auto& a) { a.sequence = 0; }));
  EXPECT_TRUE(refused([](auto& a) { a.sequence = kMaxSequence + 1; }));
  EXPECT_TRUE(
      refused([](auto& a) { a.index = HostIndex(static_cast<std::uint16_t>(kMaxHostIndex.value() + 1)); }));
  EXPECT_TRUE(refused([](auto& a) { a.index = kNoHost; }));
  EXPECT_TRUE(refused([](auto& a) { a.name = "\x1b[31m"; })) << "control characters";
  EXPECT_TRUE(refused([](auto& a) { a.name = "\xC3"; })) << "half of a character";
  EXPECT_TRUE(refused([](auto& a) { a.links[1].port = PortIndex(0); })) << "a port twice";
  EXPECT_TRUE(refused([](auto& a) { a.links[0].neighbour = a.origin; })) << "a cable to itself";
  EXPECT_TRUE(refused([](auto& a) { a.links[0].cost = 0; }));
  EXPECT_TRUE(refused([](auto& a) { a.links[0].cost = kMaxCost + 1; }));
  EXPECT_TRUE(refused([](auto& a) { a.prefixes = {Prefix{{}, 129}}; }));
  EXPECT_TRUE(refused([](auto& a) { a.prefixes.resize(kMaxPrefixes + 1); }));
}

TEST(Messages, LargestAdvertisementFitsIntoAMessage) {
  Advertisement large;
  large.origin = Guid(1);
  large.sequence = 1;
  large.name = std::string(kMaxName, 'n');
  for (unsigned i = 0; i < kMaxLinks; ++i)
    large.links.push_back({PortIndex(static_cast<std::uint8_t>(i)), Guid(2), PortIndex(0), true, 1, 1});
  large.prefixes.resize(kMaxPrefixes);
  const std::vector<Flooded> items{{7, encode(large)}, {8, encode(large)}};
  const auto messages = encode_all(items);
  ASSERT_EQ(messages.size(), 2u);
  for (const auto& message : messages) {
    EXPECT_LE(message.size(), kMaxMessage);
    const auto decoded = decode_message(message);
    ASSERT_TRUE(decoded);
    EXPECT_EQ(decode_advertisement(std::get<Advertisements>(*decoded).items.at(0).advertisement), large);
  }
}

TEST(Messages, LidTablesTravelInParts) {
  LidTable table;
  table.version = 9;
  for (unsigned i = 1; i <= kMaxHostIndex.value(); ++i)
    table.entries.push_back({Guid(i), HostIndex(static_cast<std::uint16_t>(i))});
  LidTable together;
  const auto messages = encode_all(table);
  EXPECT_GT(messages.size(), 10u);
  for (const auto& message : messages) {
    EXPECT_LE(message.size(), kMaxMessage);
    const auto decoded = decode_message(message);
    ASSERT_TRUE(decoded);
    const auto& part = std::get<LidTablePart>(*decoded);
    EXPECT_EQ(part.first, together.entries.size());
    EXPECT_EQ(part.total, table.entries.size());
    together.entries.insert(together.entries.end(), part.entries.begin(), part.entries.end());
  }
  EXPECT_EQ(together.entries, table.entries);
  EXPECT_TRUE(valid(table));
  std::swap(table.entries[3].host, table.entries[4].host);
  EXPECT_FALSE(valid(table)) << "not sorted";
  std::swap(table.entries[3].host, table.entries[4].host);
  table.entries[3].index = table.entries[4].index;
  EXPECT_FALSE(valid(table)) << "an index twice";
}

// Random bytes and damaged messages: no crash, and whatever decodes encodes to the same bytes.
TEST(Messages, DamagedMessagesAreRefusedOrMeanWhatTheySay) {
  std::mt19937 random(7);
  unsigned decoded_ones = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes;
    if (i % 2 == 0) {
      const std::vector<Flooded> items{{1, encode(random_advertisement(random))}};
      bytes = encode_all(items).front();
      for (unsigned n = random() % 4; n > 0; --n) bytes[random() % bytes.size()] = std::byte(random());
      if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    } else {
      bytes.resize(random() % 40);
      for (auto& byte : bytes) byte = std::byte(random() % 8);
    }
    const auto message = decode_message(bytes);
    if (!message) continue;
    ++decoded_ones;
    EXPECT_EQ(encode(*message), bytes);
    if (const auto* advertisements = std::get_if<Advertisements>(&*message))
      for (const auto& item : advertisements->items)
        if (const auto advertisement = decode_advertisement(item.advertisement)) {
          EXPECT_EQ(encode(*advertisement), item.advertisement);
        }
  }
  EXPECT_GT(decoded_ones, 1000u);
}

}  // namespace
}  // namespace fabric::routing
