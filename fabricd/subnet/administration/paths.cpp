// Paths. There is one between two ports of a cable, and one from a port to itself; what is asked of them
// (GIDs, LIDs, selectors of MTU, rate and lifetime) comes in two formats, PathRecord and MultiPathRecord,
// which are both brought into one. A path to a multicast group is what the group is.
//
// The lifetime of a packet on one cable is microseconds; it is given as 4 ms so that what is derived from it
// (acknowledgement timeouts of connections) stays short, and as 0 from a port to itself, as OpenSM does.
//
// A MultiPathRecord asks for paths between sets of GIDs. On one cable no two paths are independent, so the
// independence selector changes nothing.
//
// Specification: InfiniBand Architecture, volume 1: 15.2.5.16 (PathRecord), 15.2.5.20 (MultiPathRecord).
#include "fabricd/subnet/administration/paths.hpp"

#include <utility>

namespace fabric::daemon::subnet::administration {

using verbs::load_big_endian;
using verbs::PortInfo;
using verbs::store_big_endian;

namespace {

/// Where a format has what both have: components of the mask, and offsets.
struct Format {
  std::uint64_t raw_traffic, pkey, sl, mtu, rate, life, service_id;
  std::size_t flow_at, traffic_class_at, pkey_at, qos_at, mtu_at, rate_at, life_at;
  std::size_t service_id_high_at, service_id_low_at;  ///< one byte, and seven
};
constexpr Format kPath{.raw_traffic = bit(6),
                       .pkey = bit(13),
                       .sl = bit(15),
                       .mtu = bit(16) | bit(17),
                       .rate = bit(18) | bit(19),
                       .life = bit(20) | bit(21),
                       .service_id = bit(0) | bit(1),
                       .flow_at = 44,
                       .traffic_class_at = 48,
                       .pkey_at = 50,
                       .qos_at = 52,
                       .mtu_at = 54,
                       .rate_at = 55,
                       .life_at = 56,
                       .service_id_high_at = 0,
                       .service_id_low_at = 1};
constexpr Format kMultiPath{.raw_traffic = bit(0),
                            .pkey = bit(7),
                            .sl = bit(9),
                            .mtu = bit(10) | bit(11),
                            .rate = bit(12) | bit(13),
                            .life = bit(14) | bit(15),
                            .service_id = bit(16) | bit(21),
                            .flow_at = 0,
                            .traffic_class_at = 4,
                            .pkey_at = 6,
                            .qos_at = 8,
                            .mtu_at = 10,
                            .rate_at = 11,
                            .life_at = 12,
                            .service_id_high_at = 13,
                            .service_id_low_at = 17};

// Of PathRecord alone.
constexpr std::uint64_t kDgid = bit(2), kSgid = bit(3), kDlid = bit(4), kSlid = bit(5);
constexpr std::size_t kSize = 64, kDgidAt = 8, kSgidAt = 24, kDlidAt = 40, kSlidAt = 42, kHopLimitAt = 47,
                      kNumberAt = 49;
// Of MultiPathRecord alone.
constexpr std::uint64_t kPathCount = bit(6), kSgidCount = bit(19), kDgidCount = bit(20);
constexpr std::size_t kPathCountAt = 5, kSgidCountAt = 15, kDgidCountAt = 16, kGidsAt = 24;
constexpr std::size_t kMostGids = (kDataSize - kGidsAt) / 16;

/// Reversible; the number of paths means nothing in an answer.
constexpr std::uint8_t kReversible = 0x80;

struct RateCode {
  std::uint8_t code;
  unsigned gigabits_by_ten;
};
/// In order of the rate.
constexpr RateCode kRates[] = {{2, 25},    {5, 50},    {3, 100},   {11, 140},  {6, 200},   {15, 250},
                               {19, 280},  {4, 300},   {7, 400},   {20, 500},  {12, 560},  {8, 600},
                               {9, 800},   {16, 1000}, {13, 1120}, {10, 1200}, {14, 1680}, {17, 2000},
                               {18, 3000}, {21, 4000}, {22, 6000}, {23, 8000}, {24, 12000}};

unsigned rate_of(std::uint8_t code) {
  for (const auto& rate : kRates)
    if (rate.code == code) return rate.gigabits_by_ten;
  return 0;
}

/// Selector and value against what there is, by order of size.
template <class Order, class Smaller>
std::optional<std::uint8_t> choose(std::uint8_t present, Wish wish, Order order, Smaller smaller) {
  if (!wish.stated) return present;
  const std::uint8_t value = wish.selector_and_value & 0x3F;
  switch (wish.selector_and_value >> 6) {
    case 0:  // greater than
      return order(present) > order(value) ? std::optional(present) : std::nullopt;
    case 1:  // less than
      return order(present) < order(value) ? std::optional(present) : smaller(value);
    case 2:  // exactly
      return order(value) != 0 && order(present) >= order(value) ? std::optional(value) : std::nullopt;
    default:  // the largest there is
      return present;
  }
}

/// Of a lifetime less is better, and more can be promised.
std::optional<std::uint8_t> choose_lifetime(std::uint8_t present, Wish wish) {
  if (!wish.stated) return present;
  const std::uint8_t value = wish.selector_and_value & 0x3F;
  switch (wish.selector_and_value >> 6) {
    case 0:
      return std::max<std::uint8_t>(present, static_cast<std::uint8_t>(value + 1));
    case 1:
      return present < value ? std::optional(present) : std::nullopt;
    case 2:
      return present <= value ? std::optional(value) : std::nullopt;
    default:
      return present;
  }
}

/// What is asked of a path, in whatever format it came.
struct Demand {
  Wish mtu, rate, life;
  bool possible = true;
  std::uint16_t pkey = kDefaultPkey;
  std::uint8_t sl = 0;            ///< any will do: the subnet manager sees to it that all have a lane
  std::size_t number = SIZE_MAX;  ///< of paths, at most (a PathRecord's is of each pair, which has one)
  std::array<std::uint8_t, 8> service_id{};
  std::uint32_t flow_label = 0;
  std::uint8_t traffic_class = 0;
};

Demand demand_of(const Query& query, const Format& format) {
  Demand demand{.mtu = {query.data[format.mtu_at], query.has(format.mtu)},
                .rate = {query.data[format.rate_at], query.has(format.rate)},
                .life = {query.data[format.life_at], query.has(format.life)}};
  if (query.has(format.pkey)) demand.pkey = static_cast<std::uint16_t>(query.number_at<2>(format.pkey_at));
  if (query.has(format.sl)) demand.sl = query.data[format.qos_at + 1] & 0x0F;
  demand.possible = !(query.has(format.raw_traffic) && (query.data[format.flow_at] & 0x80) != 0) &&
                    is_default_partition(demand.pkey);
  demand.service_id[0] = query.data[format.service_id_high_at];
  std::copy_n(query.data.begin() + static_cast<std::ptrdiff_t>(format.service_id_low_at), 7,
              demand.service_id.begin() + 1);
  demand.flow_label = query.number_at<3>(format.flow_at) & 0xFFFFF;
  demand.traffic_class = query.data[format.traffic_class_at];
  return demand;
}

/// Of what no path could have, and of half a ServiceID.
Status complaint(const Query& query, const Format& format) {
  if (!makes_sense({query.data[format.mtu_at], query.has(format.mtu)}, is_mtu) ||
      !makes_sense({query.data[format.rate_at], query.has(format.rate)}, is_rate))
    return Status::invalid_request;
  if ((query.mask & format.service_id) != 0 && !query.has(format.service_id))
    return Status::insufficient_components;
  return Status::ok;
}

/// From whoever asks, who has joined the group; the group says what the path is like.
Result multicast_path(const Query& query, const Multicast& groups) {
  const Multicast::Group* group = groups.find(query.gid_at(kDgidAt));
  if (group == nullptr) return {};
  const Record& about = group->record;
  if (query.has(kDlid) && query.number_at<2>(kDlidAt) != load_big_endian<2>(about, member::kMlidAt))
    return {};
  if (query.has(kPath.pkey) && !is_default_partition(query.number_at<2>(kPath.pkey_at))) return {};
  if (query.has(kPath.sl) && (query.data[kPath.qos_at + 1] & 0x0F) != about[member::kSlAt] >> 4) return {};
  if (query.has(kSgid) && !group->members.contains(query.gid_at(kSgidAt))) return {};
  Record record(query.data.begin(), query.data.begin() + kSize);
  put(record, kDlidAt, std::span(about).subspan(member::kMlidAt, 2));
  record[kPath.flow_at] = 0;
  // SL, flow label and hop limit share 32 bits there; beyond the link nobody counts hops yet.
  store_big_endian<3>(record, kPath.flow_at, load_big_endian<3>(about, member::kSlAt) & 0xFFFFF);
  const bool link_local = (query.data[kDgidAt + 1] & 0x0F) == 2;
  record[kHopLimitAt] = link_local ? about[member::kHopLimitAt] : 0xFF;
  record[kPath.traffic_class_at] = about[member::kTrafficClassAt];
  record[kNumberAt] = 1;  // not reversible
  put(record, kPath.pkey_at, std::span(about).subspan(member::kPkeyAt, 2));
  store_big_endian<2>(record, kPath.qos_at, about[member::kSlAt] >> 4);
  record[kPath.mtu_at] = about[member::kMtuAt];
  record[kPath.rate_at] = about[member::kRateAt];
  record[kPath.life_at] = about[member::kLifeAt];
  std::fill(record.begin() + static_cast<std::ptrdiff_t>(kPath.life_at) + 1, record.end(), std::uint8_t{0});
  return {Status::ok, {std::move(record)}};
}

/// One end of a path, as it is called in the query.
struct PathEnd {
  const End& port;
  Gid gid;
  Lid lid;
};

/// Adds the path, if it is as demanded.
void add(Result& result, const Demand& demand, const Query& query, const PathEnd& from, const PathEnd& to) {
  if (!demand.possible || result.records.size() >= demand.number) return;
  const PortInfo& port = *query.view.own.port;
  const auto mtu = choose_mtu(port.neighbor_mtu(), demand.mtu);
  const auto rate = choose_rate(rate_code(port), demand.rate);
  const auto life = choose_lifetime(&from.port == &to.port ? std::uint8_t{0} : kPacketLifetime, demand.life);
  if (!mtu || !rate || !life) return;
  Record& record = result.records.emplace_back(kSize);
  put(record, kPath.service_id_high_at, demand.service_id);
  put(record, kDgidAt, to.gid);
  put(record, kSgidAt, from.gid);
  store_big_endian<2>(record, kDlidAt, to.lid.value());
  store_big_endian<2>(record, kSlidAt, from.lid.value());
  store_big_endian<3>(record, kPath.flow_at, demand.flow_label);
  record[kPath.traffic_class_at] = demand.traffic_class;
  record[kNumberAt] = kReversible;
  store_big_endian<2>(record, kPath.pkey_at, demand.pkey);
  store_big_endian<2>(record, kPath.qos_at, demand.sl);
  record[kPath.mtu_at] = exactly(*mtu);
  record[kPath.rate_at] = exactly(*rate);
  record[kPath.life_at] = exactly(*life);
}

}  // namespace

std::optional<std::uint8_t> choose_mtu(std::uint8_t present, Wish wish) {
  return choose(
      present, wish, [](std::uint8_t mtu) { return unsigned{mtu}; },
      [](std::uint8_t mtu) {
        return mtu > 1 ? std::optional(static_cast<std::uint8_t>(mtu - 1)) : std::nullopt;
      });
}

std::optional<std::uint8_t> choose_rate(std::uint8_t present, Wish wish) {
  return choose(present, wish, rate_of, [](std::uint8_t rate) {
    std::optional<std::uint8_t> below;
    for (const auto& candidate : kRates)
      if (candidate.gigabits_by_ten < rate_of(rate)) below = candidate.code;
    return below;
  });
}

bool makes_sense(Wish wish, bool (*is_value)(std::uint8_t)) {
  const bool largest = wish.selector_and_value >> 6 == 3;  // whatever that is
  return !wish.stated || largest || is_value(wish.selector_and_value & 0x3F);
}

bool is_mtu(std::uint8_t code) {
  return code >= 1 && code <= 5;
}

bool is_rate(std::uint8_t code) {
  return rate_of(code) != 0;
}

std::uint8_t rate_order(std::uint8_t code) {
  for (std::size_t i = 0; i < std::size(kRates); ++i)
    if (kRates[i].code == code) return static_cast<std::uint8_t>(i + 1);
  return 0;
}

std::uint8_t rate_code(const PortInfo& info) {
  const verbs::LinkSpeed speed = info.link_speed();
  for (const auto& rate : kRates)
    if (rate.gigabits_by_ten == speed.lanes * speed.lane_rate) return rate.code;
  return 0;
}

Result paths(const Query& query, const Multicast& groups) {
  if (const Status status = complaint(query, kPath); status != Status::ok) return {status};
  if (query.has(kDgid) && query.data[kDgidAt] == 0xFF) return multicast_path(query, groups);
  const Demand demand = demand_of(query, kPath);
  // The ports that may be an end of it, called as the query calls them.
  const auto candidates = [&](std::uint64_t by_gid, std::size_t gid_at, std::uint64_t by_lid,
                              std::size_t lid_at) {
    std::vector<PathEnd> ends;
    for (const End* end : query.ends()) {
      PathEnd candidate{*end, gid_of(*end), end->port->lid()};
      if (query.has(by_gid)) candidate.gid = query.gid_at(gid_at);
      if (query.has(by_lid)) candidate.lid = query.lid_at(lid_at);
      if (is_gid_of(candidate.gid, *end) && is_lid_of(candidate.lid, *end)) ends.push_back(candidate);
    }
    return ends;
  };
  const auto sources = candidates(kSgid, kSgidAt, kSlid, kSlidAt);
  const auto destinations = candidates(kDgid, kDgidAt, kDlid, kDlidAt);
  Result result;
  for (const PathEnd& from : sources)
    for (const PathEnd& to : destinations) add(result, demand, query, from, to);
  return result;
}

Result multi_paths(const Query& query) {
  if (!query.has(kSgidCount | kDgidCount)) return {Status::insufficient_components};
  if (const Status status = complaint(query, kMultiPath); status != Status::ok) return {status};
  const std::size_t sources = query.data[kSgidCountAt], destinations = query.data[kDgidCountAt];
  if (sources == 0 || destinations == 0 || sources + destinations > kMostGids)
    return {Status::invalid_request};
  Demand demand = demand_of(query, kMultiPath);
  const std::size_t number = query.data[kPathCountAt] & 0x7F;
  if (query.has(kPathCount) && number != 0) demand.number = number;
  std::vector<PathEnd> ends;
  for (std::size_t i = 0; i < sources + destinations; ++i) {
    const Gid gid = query.gid_at(kGidsAt + 16 * i);
    const End* end = end_of(query.view, gid);
    if (end == nullptr) return {Status::invalid_gid};
    ends.push_back({*end, gid, end->port->lid()});
  }
  Result result;
  for (std::size_t from = 0; from < sources; ++from)
    for (std::size_t to = sources; to < ends.size(); ++to) add(result, demand, query, ends[from], ends[to]);
  return result;
}

}  // namespace fabric::daemon::subnet::administration
