#include "routing/link_state.hpp"

#include <algorithm>
#include <tuple>

namespace fabric::routing {

LinkState::News LinkState::compare(const AdvertisementKey& key) const {
  const auto found = records_.find(key.origin);
  if (found == records_.end()) return News::newer;
  const Advertisement& known = found->second.advertisement;
  const auto order =
      std::tuple(key.sequence, key.incarnation) <=> std::tuple(known.sequence, known.incarnation);
  return order > 0 ? News::newer : order < 0 ? News::older : News::same;
}

std::unique_ptr<LinkState::Record> LinkState::store(Advertisement advertisement,
                                                    std::vector<std::byte> encoded, TimePoint born) {
  const Guid origin = advertisement.origin;
  Record record{std::move(advertisement), std::move(encoded), born};
  const auto [place, added] = records_.try_emplace(origin);
  std::swap(place->second, record);
  return added ? nullptr : std::make_unique<Record>(std::move(record));
}

std::size_t LinkState::forget(TimePoint before, Guid except) {
  return std::erase_if(
      records_, [&](const auto& entry) { return entry.second.born < before && entry.first != except; });
}

const LinkState::Record* LinkState::find(Guid origin) const {
  const auto found = records_.find(origin);
  return found == records_.end() ? nullptr : &found->second;
}

Flooded LinkState::flooded(const Record& record, TimePoint now) {
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(now - record.born).count();
  return {static_cast<std::uint32_t>(std::max<std::int64_t>(age, 0)), record.encoded};
}

}  // namespace fabric::routing
