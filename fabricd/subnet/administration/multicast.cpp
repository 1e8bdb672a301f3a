// Multicast on a cable of two ports: the adapter at each end receives what its own software has attached to,
// so there is nothing to configure; the administrator keeps who has joined what, and gives out LIDs.
//
// The IPoIB broadcast group exists before anybody joins, with the cable's own MTU and rate rather than
// OpenSM's 2048 bytes at 10 Gbit/s. Other groups are made by the first full member (or send-only full member)
// that names all of Q_Key, P_Key, SL, flow label and traffic class, and end with the last such member. An
// IPoIB group is made only with what its broadcast group has.
//
// Specification: InfiniBand Architecture, volume 1: 15.2.5.17 (MCMemberRecord), 4.1.1 (multicast GIDs).
#include "fabricd/subnet/administration/multicast.hpp"

#include <algorithm>

#include "fabricd/subnet/administration/paths.hpp"

namespace fabric::daemon::subnet::administration {

using verbs::PortInfo;
using verbs::store_big_endian;
using namespace member;

namespace {

constexpr std::uint16_t kLayout[] = {128, 128, 32, 16, 2, 6, 8, 16, 2, 6, 2, 6, 4, 20, 8, 4, 4, 1};
constexpr std::uint64_t kMgid = bit(0), kPortGid = bit(1), kQkey = bit(2), kMtu = bit(4) | bit(5),
                        kTrafficClass = bit(6), kPkey = bit(7), kRate = bit(8) | bit(9),
                        kLife = bit(10) | bit(11), kSl = bit(12), kFlow = bit(13), kScope = bit(15),
                        kJoinState = bit(16);
constexpr std::uint64_t kToJoin = kMgid | kPortGid | kJoinState;
constexpr std::uint64_t kToCreate = kQkey | kTrafficClass | kPkey | kSl | kFlow;
/// What a client names beyond the group must be what the group is.
constexpr std::uint64_t kCompared = kQkey | kPkey | kSl | kFlow | kTrafficClass;
constexpr std::uint8_t kFullMember = 1, kSendOnlyFullMember = 8;
constexpr std::uint8_t kProxy = 0x80;

constexpr std::uint32_t kIpoibQkey = 0x0B1B;
constexpr std::uint16_t kFirstMlid = 0xC000, kLastMlid = 0xC3FF;
constexpr Gid kBroadcastGroup{0xFF, 0x12, 0x40, 0x1B, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF};
constexpr std::uint8_t kLinkLocalScope = 2;

std::uint16_t signature(const Gid& mgid) {
  return static_cast<std::uint16_t>(mgid[2] << 8 | mgid[3]);
}
bool is_ipoib(const Gid& mgid) {
  return signature(mgid) == 0x401B || signature(mgid) == 0x601B;
}
/// MGIDs that administrators choose (15.2.5.17.2): nobody may ask for one within a link.
bool is_reserved(const Gid& mgid) {
  return signature(mgid) == 0xA01B && (mgid[1] & 0x0F) == kLinkLocalScope;
}
/// Multicast, and without unknown flags.
bool is_valid(const Gid& mgid) {
  return mgid[0] == 0xFF && (mgid[1] & 0xE0) == 0 && !is_reserved(mgid);
}

Gid broadcast_of(const Gid& ipoib) {
  Gid result = kBroadcastGroup;
  result[1] = static_cast<std::uint8_t>((result[1] & 0xF0) | (ipoib[1] & 0x0F));
  result[4] = ipoib[4];  // P_Key
  result[5] = ipoib[5];
  return result;
}

Wish wish(const Query& query, std::uint64_t components, std::size_t at) {
  return {query.data[at], query.has(components)};
}

bool has_valid_wishes(const Query& query) {
  return makes_sense(wish(query, kMtu, kMtuAt), is_mtu) && makes_sense(wish(query, kRate, kRateAt), is_rate);
}

/// Whether what a group has satisfies a selector.
bool fits(std::uint8_t present, Wish wish, std::uint8_t (*order)(std::uint8_t)) {
  if (!wish.stated) return true;
  const std::uint8_t value = order(wish.selector_and_value & 0x3F), had = order(present & 0x3F);
  switch (wish.selector_and_value >> 6) {
    case 0:
      return had > value;
    case 1:
      return had < value;
    case 2:
      return had == value;
    default:
      return true;
  }
}
std::uint8_t as_it_is(std::uint8_t value) {
  return value;
}

/// The group as the query describes it.
bool is_described(const Multicast::Group& group, const Query& query) {
  return fits(group.record[kMtuAt], wish(query, kMtu, kMtuAt), as_it_is) &&
         fits(group.record[kRateAt], wish(query, kRate, kRateAt), rate_order) &&
         fits(group.record[kLifeAt], wish(query, kLife, kLifeAt), as_it_is);
}

/// The same for full and limited members of the partition.
bool has_components(const Record& record, const Query& query, std::uint64_t mask) {
  Record wanted(query.data.begin(), query.data.begin() + kSize);
  if (query.method != verbs::MadMethod::get && query.method != verbs::MadMethod::get_table)
    wanted[kPkeyAt] |= 0x80;
  return matches(record, wanted, kLayout, mask);
}

Record member_record(const Multicast::Group& group, const Gid& port,
                     const Multicast::Membership& membership) {
  Record record = group.record;
  put(record, kPortGidAt, port);
  record[kScopeAt] |= membership.state;
  record[kProxyAt] = membership.by_proxy ? kProxy : 0;
  return record;
}

/// Whoever was joined by proxy may be changed by everybody in the partition, others by themselves only
/// (o15-0.2.1).
bool may_change(const Multicast::Membership& membership, const Gid& port, const Query& query) {
  const End* asker = end_of(query.view, query.source.lid);
  return membership.by_proxy || (asker != nullptr && is_gid_of(port, *asker));
}

bool is_needed(const Multicast::Group& group) {
  return group.permanent || std::any_of(group.members.begin(), group.members.end(), [](const auto& entry) {
           return (entry.second.state & (kFullMember | kSendOnlyFullMember)) != 0;
         });
}

}  // namespace

void Multicast::make_broadcast_group(const View& view) {
  const auto [found, is_new] = groups_.try_emplace(kBroadcastGroup);
  Group& group = found->second;
  const PortInfo& link = *view.own.port;
  if (!is_new && group.record[kMtuAt] == exactly(link.neighbor_mtu()) &&
      group.record[kRateAt] == exactly(rate_code(link)))
    return;
  group.permanent = true;
  group.record.resize(kSize);
  Record& record = group.record;
  put(record, kMgidAt, kBroadcastGroup);
  store_big_endian<4>(record, kQkeyAt, kIpoibQkey);
  store_big_endian<2>(record, kMlidAt, kFirstMlid);
  record[kMtuAt] = exactly(link.neighbor_mtu());
  store_big_endian<2>(record, kPkeyAt, kDefaultPkey);
  record[kRateAt] = exactly(rate_code(link));
  record[kLifeAt] = exactly(kPacketLifetime);
  record[kScopeAt] = static_cast<std::uint8_t>((kBroadcastGroup[1] & 0x0F) << 4);
}

Result Multicast::records(const Query& query) const {
  if (!has_valid_wishes(query)) return {Status::invalid_request};
  const std::uint64_t mask = query.mask & ~(kMtu | kRate | kLife);
  Result result;
  const auto add = [&](const Record& record) {
    if (has_components(record, query, mask)) result.records.push_back(record);
  };
  for (const auto& [mgid, group] : groups_) {
    if (!is_described(group, query)) continue;
    // Who the members are is told to those who know the key, and to others only of a port that they name.
    if (query.trusted || query.has(kPortGid))
      for (const auto& [port, membership] : group.members) add(member_record(group, port, membership));
    else
      add(group.record);
  }
  if (!query.trusted)
    for (Record& record : result.records) {
      put(record, kPortGidAt, Gid{});
      record[kScopeAt] &= 0xF0;
      record[kProxyAt] = 0;
    }
  return result;
}

std::optional<std::uint16_t> Multicast::free_mlid() const {
  std::vector<bool> taken(kLastMlid - kFirstMlid + 1);
  for (const auto& [mgid, group] : groups_)
    taken[verbs::load_big_endian<2>(group.record, kMlidAt) - kFirstMlid] = true;
  const auto free = std::find(taken.begin() + 1, taken.end(), false);
  if (free == taken.end()) return std::nullopt;
  return static_cast<std::uint16_t>(kFirstMlid + (free - taken.begin()));
}

Status Multicast::create(const Query& query, Groups::iterator& made) {
  const std::uint8_t state = query.data[kScopeAt] & 0x0F;
  const auto pkey = query.number_at<2>(kPkeyAt);
  const PortInfo& link = *query.view.own.port;
  const auto mtu = choose_mtu(link.neighbor_mtu(), wish(query, kMtu, kMtuAt));
  const auto rate = choose_rate(rate_code(link), wish(query, kRate, kRateAt));
  if (!query.has(kToCreate)) return Status::insufficient_components;
  if ((state & (kFullMember | kSendOnlyFullMember)) == 0 || !mtu || !rate || !is_default_partition(pkey))
    return Status::invalid_request;
  const auto mlid = free_mlid();
  if (!mlid) return Status::no_resources;

  Gid mgid = query.gid_at(kMgidAt);
  if (mgid == Gid{}) {  // one may be chosen: transient, of the asked scope, unique by prefix and MLID
    const std::uint8_t scope = query.has(kScope) ? query.data[kScopeAt] >> 4 : kLinkLocalScope;
    mgid = {0xFF, static_cast<std::uint8_t>(0x10 | scope), 0xA0, 0x1B};
    store_big_endian<8>(mgid, 4, query.view.prefix);
    store_big_endian<2>(mgid, 14, *mlid);
  } else if (!is_valid(mgid)) {
    return Status::invalid_request;
  } else if (is_ipoib(mgid)) {
    const Group* broadcast = find(broadcast_of(mgid));
    const bool is_first = mgid == broadcast_of(mgid);
    if (!is_first && (broadcast == nullptr || !has_components(broadcast->record, query, kCompared)))
      return Status::invalid_request;
  }
  Group group;
  Record& record = group.record;
  record.assign(query.data.begin(), query.data.begin() + kSize);
  put(record, kMgidAt, mgid);
  put(record, kPortGidAt, Gid{});
  store_big_endian<2>(record, kMlidAt, *mlid);
  record[kMtuAt] = exactly(*mtu);
  record[kRateAt] = exactly(*rate);
  record[kLifeAt] = exactly(kPacketLifetime);
  record[kScopeAt] = static_cast<std::uint8_t>((mgid[1] & 0x0F) << 4);
  store_big_endian<2>(record, kPkeyAt, pkey | 0x8000U);
  std::fill(record.begin() + kScopeAt + 1, record.end(), std::uint8_t{0});
  made = groups_.emplace(mgid, std::move(group)).first;
  changes_.push_back({mgid, true});
  return Status::ok;
}

Result Multicast::join(const Query& query) {
  if (!query.has(kToJoin)) return {Status::insufficient_components};
  if (!has_valid_wishes(query)) return {Status::invalid_request};
  const std::uint8_t state = query.data[kScopeAt] & 0x0F;
  const Gid port = query.gid_at(kPortGidAt);
  const End* joining = end_of(query.view, port);
  if (state == 0 || joining == nullptr) return {Status::invalid_request};

  auto found = groups_.find(query.gid_at(kMgidAt));
  if (found == groups_.end()) {
    if (const Status status = create(query, found); status != Status::ok) return {status};
  } else if (!has_components(found->second.record, query, query.mask & kCompared) ||
             !is_described(found->second, query)) {
    return {Status::invalid_request};
  }
  Group& group = found->second;
  const auto [entry, is_new] = group.members.try_emplace(port);
  Membership& membership = entry->second;
  if (is_new)
    membership.by_proxy = end_of(query.view, query.source.lid) != joining;
  else if (!may_change(membership, port, query))
    return {Status::invalid_request};
  ++counters_.joins;
  membership.state |= state;
  return {Status::ok, {member_record(group, port, membership)}};
}

Result Multicast::leave(const Query& query) {
  if (!query.has(kToJoin)) return {Status::insufficient_components};
  const auto found = groups_.find(query.gid_at(kMgidAt));
  if (found == groups_.end()) return {Status::invalid_request};
  Group& group = found->second;
  const Gid port = query.gid_at(kPortGidAt);
  const auto member = group.members.find(port);
  const std::uint8_t state = query.data[kScopeAt] & 0x0F;
  // o15-0.1.14: only what was joined can be left.
  if (member == group.members.end() || state == 0 || (member->second.state & state) != state ||
      !may_change(member->second, port, query))
    return {Status::invalid_request};
  ++counters_.leaves;
  member->second.state &= static_cast<std::uint8_t>(~state);
  Record record = member_record(group, port, member->second);
  if (member->second.state == 0) group.members.erase(member);
  prune(found);
  return {Status::ok, {std::move(record)}};
}

const Multicast::Group* Multicast::find(const Gid& mgid) const {
  const auto found = groups_.find(mgid);
  return found == groups_.end() ? nullptr : &found->second;
}

Multicast::Groups::iterator Multicast::prune(Groups::iterator group) {
  if (is_needed(group->second)) return std::next(group);
  changes_.push_back({group->first, false});
  return groups_.erase(group);
}

void Multicast::forget(const Gid& port) {
  for (auto group = groups_.begin(); group != groups_.end();) {
    group->second.members.erase(port);
    group = prune(group);
  }
}

void Multicast::forget() {
  groups_.clear();
  changes_.clear();
}

}  // namespace fabric::daemon::subnet::administration
