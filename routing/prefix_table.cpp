#include "routing/prefix_table.hpp"

#include <algorithm>
#include <map>

namespace fabric::routing {

PrefixTable::Key PrefixTable::load(const std::uint8_t* bytes) noexcept {
  Key key;
  for (int i = 0; i < 8; ++i) {
    key.high = key.high << 8 | bytes[i];
    key.low = key.low << 8 | bytes[i + 8];
  }
  return key;
}

PrefixTable::Key PrefixTable::mask_of(unsigned length) noexcept {
  constexpr auto ones = [](unsigned bits) {
    return bits == 0 ? std::uint64_t{0} : ~std::uint64_t{0} << (64 - bits);
  };
  return {ones(std::min(length, 64u)), ones(length > 64 ? std::min(length - 64, 64u) : 0)};
}

PrefixTable::PrefixTable(std::span<const Prefix> pools,
                         std::span<const std::pair<Prefix, HostIndex>> routes) {
  std::map<std::uint8_t, std::map<Key, HostIndex>, std::greater<>> lengths;
  const auto add = [&](const Prefix& prefix, HostIndex host) {
    const Key mask = mask_of(prefix.length);
    const Key key = load(prefix.address.data());
    lengths[prefix.length].try_emplace({key.high & mask.high, key.low & mask.low}, host);
  };
  for (const auto& [prefix, host] : routes)
    if (host != kNoHost && prefix.length <= 128) add(prefix, host);
  for (const Prefix& pool : pools)
    if (pool.length < 128) add(pool, kNoHost);
  for (const auto& [length, entries] : lengths) {
    const auto begin = static_cast<std::uint32_t>(entries_.size());
    for (const auto& [key, host] : entries) entries_.push_back({key, host});
    lengths_.push_back({mask_of(length), begin, static_cast<std::uint32_t>(entries_.size())});
  }
}

HostIndex PrefixTable::find(Key address) const noexcept {
  for (const Length& length : lengths_) {
    const Key key{address.high & length.mask.high, address.low & length.mask.low};
    const auto* begin = entries_.data() + length.begin;
    const auto* end = entries_.data() + length.end;
    const auto* entry =
        end - begin == 1
            ? begin
            : std::lower_bound(begin, end, key, [](const Entry& e, const Key& k) { return e.key < k; });
    if (entry == end || entry->key != key) continue;
    if (entry->host != kNoHost) return entry->host;
    const std::uint64_t high = address.high & ~length.mask.high, low = address.low & ~length.mask.low;
    return high == 0 && low <= kMaxHostIndex.value() ? HostIndex(static_cast<std::uint16_t>(low)) : kNoHost;
  }
  return kNoHost;
}

}  // namespace fabric::routing
