#include "routing/prefix_table.hpp"

#include <gtest/gtest.h>

#include <random>

namespace fabric::routing {
namespace {

Prefix v4(std::uint32_t address, unsigned length) {
  Prefix prefix;
  prefix.address[10] = prefix.address[11] = 0xFF;
  for (unsigned i = 0; i < 4; ++i)
    prefix.address[12 + i] = static_cast<std::uint8_t>(address >> (24 - 8 * i));
  prefix.length = static_cast<std::uint8_t>(96 + length);
  return prefix;
}
constexpr std::uint32_t ip(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  return a << 24 | b << 16 | c << 8 | d;
}

TEST(PrefixTable, PoolsRoutesAndDefault) {
  Prefix ula;
  ula.address[0] = 0xFD;
  ula.length = 64;
  const std::vector<Prefix> pools{v4(ip(10, 88, 0, 0), 16), ula};
  const std::vector<std::pair<Prefix, HostIndex>> routes{{v4(ip(192, 168, 7, 0), 24), HostIndex(3)},
                                                         {v4(ip(192, 168, 7, 9), 32), HostIndex(4)},
                                                         {v4(0, 0), HostIndex(1)}};
  const PrefixTable table(pools, routes);
  EXPECT_EQ(table.lookup(ip(10, 88, 0, 5)), HostIndex(5));
  EXPECT_EQ(table.lookup(ip(10, 88, 1, 0)), HostIndex(256));
  EXPECT_EQ(table.lookup(ip(10, 88, 255, 255)), kNoHost) << "a pool's address is never sent to the default";
  EXPECT_EQ(table.lookup(ip(192, 168, 7, 1)), HostIndex(3));
  EXPECT_EQ(table.lookup(ip(192, 168, 7, 9)), HostIndex(4));
  EXPECT_EQ(table.lookup(ip(8, 8, 8, 8)), HostIndex(1));
  std::array<std::uint8_t, 16> address = ula.address;
  address[15] = 2;
  EXPECT_EQ(table.lookup(address), HostIndex(2));
  address[1] = 1;
  EXPECT_EQ(table.lookup(address), kNoHost) << "the IPv4 default is none for IPv6";
  EXPECT_EQ(PrefixTable().lookup(ip(10, 88, 0, 5)), kNoHost);
}

// Oracle: try every entry, bit by bit.
TEST(PrefixTable, AgreesWithNaiveSearch) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    // Few values per byte and few lengths, so that prefixes nest and collide.
    const auto address = [&] {
      std::array<std::uint8_t, 16> bytes{};
      for (auto& byte : bytes) byte = random() % 8 == 0 ? 0xFF : 0;
      return bytes;
    };
    std::vector<std::pair<Prefix, HostIndex>> routes;
    for (unsigned i = 0; i < random() % 40; ++i)
      routes.emplace_back(Prefix{address(), static_cast<std::uint8_t>(random() % 129)},
                          HostIndex(static_cast<std::uint16_t>(1 + i)));
    const std::vector<Prefix> pools{{address(), 64}, {address(), 112}};
    const PrefixTable table(pools, routes);
    for (int i = 0; i < 200; ++i) {
      auto wanted = address();
      if (i % 2 == 0 && !routes.empty()) {  // close to a route
        wanted = routes[random() % routes.size()].first.address;
        wanted[random() % 16] ^= static_cast<std::uint8_t>(1u << random() % 8);
      }
      const auto matches = [&](const Prefix& prefix) {
        for (unsigned bit = 0; bit < prefix.length; ++bit)
          if (((wanted[bit / 8] ^ prefix.address[bit / 8]) >> (7 - bit % 8) & 1) != 0) return false;
        return true;
      };
      int longest = -1;
      HostIndex expected = kNoHost;
      for (const auto& [prefix, host] : routes)
        if (prefix.length > longest && matches(prefix)) longest = prefix.length, expected = host;
      for (const Prefix& pool : pools)
        if (pool.length > longest && matches(pool)) {
          longest = pool.length;
          std::uint64_t rest = 0;
          for (unsigned bit = pool.length; bit < 128; ++bit)
            rest = rest << 1 | (wanted[bit / 8] >> (7 - bit % 8) & 1);
          expected = rest <= kMaxHostIndex.value() ? HostIndex(static_cast<std::uint16_t>(rest)) : kNoHost;
        }
      ASSERT_EQ(table.lookup(wanted), expected);
    }
  }
}

}  // namespace
}  // namespace fabric::routing
