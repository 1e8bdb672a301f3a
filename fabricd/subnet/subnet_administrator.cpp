// The subnet administrator of one cable.
//
// Every record type is a layout: the widths of its components in the order of the specification's tables,
// which is also the order of the component mask. A query is answered by making all records of its type (there
// are two ports, so there are few) and keeping those that equal the query's template in every component of
// the mask. Only what is not a plain comparison has code of its own: paths (GIDs, selectors of MTU, rate and
// lifetime) and multicast memberships (create, join, leave).
//
// What kernels and tools need from it (Linux 6.1, rdma-core 44, infiniband-diags):
//   - the kernel's SA cache: ClassPortInfo with SendOnlyFullMember in CapabilityMask2;
//   - IPoIB: the broadcast group exists before anybody joins, with the cable's own MTU and rate rather than
//     OpenSM's 2048 bytes at 10 Gbit/s; further groups are made by the first full member that names all of
//     Q_Key, P_Key, SL, flow label and traffic class;
//   - IPoIB unicast and rdma_cm: PathRecord by GIDs. The lifetime of a packet on one cable is microseconds;
//   it
//     is given as 4 ms so that what is derived from it (acknowledgement timeouts of connections) stays short;
//   - saquery, osmtest: tables.
//
// No table is large, but answers to GetTable are multi-packet transactions by definition; the kernel's RMPP
// divides, repeats and acknowledges. A GetTable without a match is an empty table, a Get without one is
// NO_RECORDS, a Get with several TOO_MANY_RECORDS.
//
// Specification: InfiniBand Architecture, volume 1: 15.2 (records), 15.4.1 (operations), 15.2.5.17
// (MCMemberRecord), 15.2.5.16 (PathRecord). Departures: no ServiceRecord, InformInfo, MultiPathRecord yet; an
// SM_Key other than 0 and 1 makes a request unanswerable, as with OpenSM.
//
// Threading: none.
#include "fabricd/subnet/subnet_administrator.hpp"

#include <algorithm>
#include <utility>

namespace fabric::daemon::subnet {

using verbs::load_big_endian;
using verbs::Mad;
using verbs::MadMethod;
using verbs::PortInfo;
using verbs::SmState;
using verbs::store_big_endian;

namespace {

// Offsets in a MAD of this class (15.2.1.1).
constexpr std::size_t kRmppVersionAt = 24, kRmppTypeAt = 25, kRmppFlagsAt = 26, kSmKeyAt = 36,
                      kAttributeOffsetAt = 44, kMaskAt = 48, kDataAt = 56;
constexpr std::size_t kDataSize = 200;
constexpr std::uint8_t kRmppData = 1, kRmppActive = 1;
constexpr std::uint64_t kTrustedKey = 1;

constexpr std::uint16_t kOk = 0, kInvalidRequest = 0x0200, kNoRecords = 0x0300, kTooManyRecords = 0x0400,
                        kInvalidGid = 0x0500, kInsufficientComponents = 0x0600;

enum Attribute : std::uint16_t {
  kClassPortInfo = 0x0001,
  kNodeRecord = 0x0011,
  kPortInfoRecord = 0x0012,
  kSwitchInfoRecord = 0x0014,
  kLinearForwardingRecord = 0x0015,
  kRandomForwardingRecord = 0x0016,
  kMulticastForwardingRecord = 0x0017,
  kSmInfoRecord = 0x0018,
  kLinkRecord = 0x0020,
  kGuidInfoRecord = 0x0030,
  kPkeyTableRecord = 0x0033,
  kPathRecord = 0x0035,
  kMcMemberRecord = 0x0038,
};

/// Widths in bits of a record's components, which lie one after the other; their order is that of the mask.
using Layout = std::span<const std::uint16_t>;
constexpr std::uint16_t kNodeLayout[] = {16, 16, 8, 8, 8, 8, 64, 64, 64, 16, 16, 32, 8, 24, 512};
constexpr std::uint16_t kPortInfoLayout[] = {
    16, 8, 8, 64, 64, 16, 16, 32, 16, 16, 8,  8,  8,  8, 4, 4, 4, 4, 2, 3, 3,  4, 4,  4,  4, 4, 4, 8, 8,
    8,  4, 4, 3,  5,  4,  1,  1,  1,  1,  16, 16, 16, 8, 3, 5, 3, 5, 4, 4, 16, 8, 24, 16, 4, 4, 3, 5};
constexpr std::uint16_t kSmInfoLayout[] = {16, 16, 64, 64, 32, 4, 4};
constexpr std::uint16_t kLinkLayout[] = {16, 8, 8, 16};
constexpr std::uint16_t kPkeyTableLayout[] = {16, 16, 8, 24, 512};
constexpr std::uint16_t kGuidInfoLayout[] = {16, 8, 8, 32, 64, 64, 64, 64, 64, 64, 64, 64};
constexpr std::uint16_t kMcMemberLayout[] = {128, 128, 32, 16, 2, 6, 8, 16, 2, 6, 2, 6, 4, 20, 8, 4, 4, 1};

// Components of PathRecord and MCMemberRecord by their bit in the mask.
constexpr std::uint64_t bit(unsigned number) {
  return 1ULL << number;
}
namespace path {
constexpr std::uint64_t kDgid = bit(2), kSgid = bit(3), kDlid = bit(4), kSlid = bit(5), kRawTraffic = bit(6),
                        kNumbPath = bit(12), kPkey = bit(13), kSl = bit(15), kMtuSelector = bit(16),
                        kMtu = bit(17), kRateSelector = bit(18), kRate = bit(19), kLifeSelector = bit(20),
                        kLife = bit(21);
constexpr std::size_t kSize = 64, kServiceIdAt = 0, kDgidAt = 8, kSgidAt = 24, kDlidAt = 40, kSlidAt = 42,
                      kFlowAt = 44, kTrafficClassAt = 48, kNumbPathAt = 49, kPkeyAt = 50, kQosAt = 52,
                      kMtuAt = 54, kRateAt = 55, kLifeAt = 56;
}  // namespace path
namespace member {
constexpr std::uint64_t kMgid = bit(0), kPortGid = bit(1), kQkey = bit(2), kMtuSelector = bit(4),
                        kMtu = bit(5), kTrafficClass = bit(6), kPkey = bit(7), kRateSelector = bit(8),
                        kRate = bit(9), kSl = bit(12), kFlow = bit(13), kScope = bit(15),
                        kJoinState = bit(16);
constexpr std::uint64_t kToJoin = kMgid | kPortGid | kJoinState;
constexpr std::uint64_t kToCreate = kQkey | kTrafficClass | kPkey | kSl | kFlow;
constexpr std::size_t kSize = 52, kMgidAt = 0, kPortGidAt = 16, kQkeyAt = 32, kMlidAt = 36, kMtuAt = 38,
                      kPkeyAt = 40, kRateAt = 42, kLifeAt = 43, kScopeAt = 48;
constexpr std::uint8_t kFullMember = 1, kSendOnlyFullMember = 8;
}  // namespace member

// PortInfoRecord.
constexpr std::uint64_t kCapabilityMask = bit(7);
constexpr std::size_t kCapabilityMaskAt = 4 + 20;
constexpr std::uint32_t kMatchCapabilities = 1U << 31;  ///< of the attribute modifier

constexpr std::uint8_t kExactly = 2;
/// 4.096 us * 2^10 = 4.2 ms.
constexpr std::uint8_t kPacketLifetime = 10;
constexpr std::uint32_t kIpoibQkey = 0x0B1B;
constexpr std::uint16_t kDefaultPkey = 0xFFFF;
constexpr std::uint16_t kFirstMlid = 0xC000, kLastMlid = 0xC3FF;
constexpr Gid kBroadcastGroup{0xFF, 0x12, 0x40, 0x1B, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF};
constexpr std::uint64_t kLinkLocalPrefix = 0xFE80ULL << 48;

/// MGIDs that administrators choose (15.2.5.17.2): nobody may ask for one within a link.
bool is_reserved(const Gid& mgid) {
  return mgid[2] == 0xA0 && mgid[3] == 0x1B && (mgid[1] & 0x0F) == 2;
}

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

bool equal_bits(std::span<const std::uint8_t> one, std::span<const std::uint8_t> other, std::size_t from,
                std::size_t width) {
  if (from % 8 == 0 && width % 8 == 0)
    return std::equal(one.begin() + static_cast<std::ptrdiff_t>(from / 8),
                      one.begin() + static_cast<std::ptrdiff_t>((from + width) / 8),
                      other.begin() + static_cast<std::ptrdiff_t>(from / 8));
  for (std::size_t i = from; i < from + width; ++i)
    if (((one[i / 8] ^ other[i / 8]) >> (7 - i % 8) & 1) != 0) return false;
  return true;
}

bool matches(const Record& record, std::span<const std::uint8_t> wanted, Layout layout, std::uint64_t mask) {
  std::size_t from = 0;
  for (std::size_t i = 0; i < layout.size(); from += layout[i++])
    if ((mask & bit(static_cast<unsigned>(i))) != 0 && !equal_bits(record, wanted, from, layout[i]))
      return false;
  return true;
}

template <class Bytes>
void put(Record& record, std::size_t at, const Bytes& bytes) {
  std::copy(bytes.begin(), bytes.end(), record.begin() + static_cast<std::ptrdiff_t>(at));
}

Gid gid(std::uint64_t prefix, Guid guid) {
  Gid result{};
  store_big_endian<8>(result, 0, prefix);
  store_big_endian<8>(result, 8, guid.value());
  return result;
}

Gid gid_at(std::span<const std::uint8_t> bytes, std::size_t at) {
  Gid result{};
  std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), result.size(), result.begin());
  return result;
}

bool is_gid_of(const Gid& wanted, const End& end) {
  const Guid guid = end.node->port_guid();
  return wanted == gid(end.port->gid_prefix(), guid) || wanted == gid(kLinkLocalPrefix, guid);
}

bool is_lid_of(Lid lid, const End& end) {
  return lid.value() >> end.port->lmc() == end.port->lid().value() >> end.port->lmc() && lid != kNoLid;
}

/// Selector and value of a request against what there is, by order of size. The value to give, or nothing.
template <class Order, class Smaller>
std::optional<std::uint8_t> choose(std::uint8_t present, std::uint8_t wanted, bool constrained, Order order,
                                   Smaller smaller) {
  if (!constrained) return present;
  const std::uint8_t value = wanted & 0x3F;
  switch (wanted >> 6) {
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

std::optional<std::uint8_t> choose_mtu(std::uint8_t present, std::uint8_t wanted, bool constrained) {
  return choose(
      present, wanted, constrained, [](std::uint8_t mtu) { return unsigned{mtu}; },
      [](std::uint8_t mtu) {
        return mtu > 1 ? std::optional(static_cast<std::uint8_t>(mtu - 1)) : std::nullopt;
      });
}

std::optional<std::uint8_t> choose_rate(std::uint8_t present, std::uint8_t wanted, bool constrained) {
  return choose(present, wanted, constrained, rate_of, [](std::uint8_t rate) {
    std::optional<std::uint8_t> below;
    for (const auto& candidate : kRates)
      if (candidate.gigabits_by_ten < rate_of(rate)) below = candidate.code;
    return below;
  });
}

/// Of a lifetime less is better, and more can be promised.
std::optional<std::uint8_t> choose_lifetime(std::uint8_t wanted, bool constrained) {
  if (!constrained) return kPacketLifetime;
  const std::uint8_t value = wanted & 0x3F;
  switch (wanted >> 6) {
    case 0:
      return std::max<std::uint8_t>(kPacketLifetime, static_cast<std::uint8_t>(value + 1));
    case 1:
      return kPacketLifetime < value ? std::optional(kPacketLifetime) : std::nullopt;
    case 2:
      return kPacketLifetime <= value ? std::optional(value) : std::nullopt;
    default:
      return kPacketLifetime;
  }
}

Record class_port_info() {
  Record record(72);
  record[0] = 1;                           // base version
  record[1] = 2;                           // class version
  store_big_endian<2>(record, 2, 0x2200);  // UD multicast, PortInfo CapabilityMask match
  constexpr std::uint32_t kSendOnlyFullMember = 1U << 12;
  constexpr std::uint32_t kResponseTime = 16;  // 4.096 us * 2^16 = 0.27 s
  store_big_endian<4>(record, 4, kSendOnlyFullMember << 5 | kResponseTime);
  return record;
}

}  // namespace

std::uint8_t rate_code(const PortInfo& info) {
  const unsigned lanes = [&] {
    switch (info.link_width_active()) {
      case 1:
        return 1U;
      case 2:
        return 4U;
      case 4:
        return 8U;
      case 8:
        return 12U;
      case 16:
        return 2U;
      default:
        return 0U;
    }
  }();
  const unsigned lane = [&] {
    switch (info.link_speed_ext_active()) {
      case 1:
        return 140U;
      case 2:
        return 250U;
      case 4:
        return 500U;
      case 8:
        return 1000U;
      default:
        return 25U * info.link_speed_active();  // 1, 2, 4: 2.5, 5, 10 Gbit/s
    }
  }();
  for (const auto& rate : kRates)
    if (rate.gigabits_by_ten == lanes * lane) return rate.code;
  return 0;
}

struct SubnetAdministrator::Query {
  const View& view;
  std::uint16_t attribute;
  std::uint64_t mask;
  std::array<std::uint8_t, kDataSize> data;
  bool trusted;
  bool match_capabilities;  ///< PortInfoRecord: those that have all bits of the mask, not exactly these

  [[nodiscard]] bool has(std::uint64_t components) const { return (mask & components) == components; }
  [[nodiscard]] std::array<const End*, 2> ends() const { return {&view.own, &view.peer}; }
  [[nodiscard]] Lid lid_at(std::size_t at) const {
    return Lid{static_cast<std::uint16_t>(load_big_endian<2>(data, at))};
  }
};

struct SubnetAdministrator::Result {
  std::uint16_t status = kOk;
  std::vector<Record> records = {};
};

std::optional<Answer> SubnetAdministrator::handle(const View& view, const Mad& request) {
  const std::uint64_t key = load_big_endian<8>(request.bytes(), kSmKeyAt);
  const bool complete = view.own.node && view.own.port && view.peer.node && view.peer.port;
  if (request.is_response() || view.state != SmState::master || !complete ||
      (key != 0 && key != kTrustedKey)) {
    ++counters_.ignored;
    return std::nullopt;
  }
  ++counters_.queries;
  make_broadcast_group(view);
  Query query{view, request.attribute(), load_big_endian<8>(request.bytes(), kMaskAt),
              {},   key == kTrustedKey,  (request.modifier() & kMatchCapabilities) != 0};
  std::copy_n(request.bytes().begin() + kDataAt, kDataSize, query.data.begin());
  // A port answers to all LIDs of its block; records have the first.
  if (query.attribute != kPathRecord && query.attribute != kMcMemberRecord && (query.mask & bit(0)) != 0)
    for (const End* end : query.ends())
      if (is_lid_of(query.lid_at(0), *end)) store_big_endian<2>(query.data, 0, end->port->lid().value());

  Result result;
  bool table = false;
  const MadMethod method = request.method();
  const bool membership = query.attribute == kMcMemberRecord;
  if (method == MadMethod::get) {
    result = look_up(query);
    if (result.status == kOk && result.records.empty()) result.status = kNoRecords;
    if (result.records.size() > 1 && query.attribute != kPathRecord) result.status = kTooManyRecords;
  } else if (method == MadMethod::get_table) {
    result = look_up(query);
    table = result.status == kOk;
  } else if (method == MadMethod::set) {
    result = membership ? join(query) : Result{kInvalidRequest};
  } else if (method == MadMethod::remove) {
    result = membership ? leave(query) : Result{kInvalidRequest};
  } else {
    result.status = static_cast<std::uint16_t>(verbs::MadStatus::method_not_supported);
  }
  if (result.status != kOk) {
    ++counters_.refused;
    result.records.clear();
  }

  ++counters_.answers;
  Mad header = verbs::response_to(request);
  header.set_status(result.status);
  std::fill(header.bytes().begin() + kRmppVersionAt, header.bytes().begin() + kSmKeyAt, std::uint8_t{0});
  Answer answer;
  const std::size_t size = result.records.empty() ? 0 : result.records.front().size();
  const std::size_t stride = (size + 7) / 8 * 8;
  store_big_endian<2>(header.bytes(), kAttributeOffsetAt, stride / 8);
  if (table) {
    header.bytes()[kRmppVersionAt] = 1;
    header.bytes()[kRmppTypeAt] = kRmppData;
    header.bytes()[kRmppFlagsAt] = kRmppActive;
    answer.bytes.assign(header.bytes().begin(), header.bytes().begin() + kDataAt);
    for (Record& record : result.records) {
      record.resize(stride);
      answer.bytes.insert(answer.bytes.end(), record.begin(), record.end());
    }
    return answer;
  }
  std::fill(header.bytes().begin() + kDataAt, header.bytes().end(), std::uint8_t{0});
  if (result.status != kOk)  // the request comes back as it was
    std::copy(query.data.begin(), query.data.end(), header.bytes().begin() + kDataAt);
  else if (!result.records.empty())
    std::copy(result.records.front().begin(), result.records.front().end(), header.bytes().begin() + kDataAt);
  answer.bytes.assign(header.bytes().begin(), header.bytes().end());
  return answer;
}

void SubnetAdministrator::forget() {
  groups_.clear();
}

SubnetAdministrator::Result SubnetAdministrator::look_up(const Query& query) const {
  const View& view = query.view;
  std::vector<Record> all;
  Layout layout;
  const auto add = [&](std::size_t size, const End* end) -> Record& {
    Record& record = all.emplace_back(size);
    if (end != nullptr) store_big_endian<2>(record, 0, end->port->lid().value());
    return record;
  };
  switch (query.attribute) {
    case kClassPortInfo:
      return {kOk, {class_port_info()}};
    case kPathRecord:
      return paths(query);
    case kMcMemberRecord:
      return memberships(query);
    case kNodeRecord:
      layout = kNodeLayout;
      for (const End* end : query.ends()) {
        Record& record = add(108, end);
        put(record, 4, std::span(end->node->bytes()).first(40));
        std::copy_n(end->description.begin(), std::min<std::size_t>(end->description.size(), 64),
                    record.begin() + 44);
      }
      break;
    case kPortInfoRecord:
      layout = kPortInfoLayout;
      for (const End* end : query.ends()) {
        Record& record = add(68, end);
        record[2] = end->node->local_port();
        put(record, 4, end->port->bytes());
        if (!query.trusted) store_big_endian<8>(record, 4, 0);  // the M_Key
      }
      break;
    case kSmInfoRecord: {
      layout = kSmInfoLayout;
      Record& own = add(28, &view.own);
      store_big_endian<8>(own, 4, view.own.node->port_guid().value());
      own[24] = static_cast<std::uint8_t>(view.priority << 4 | static_cast<unsigned>(SmState::master));
      if (view.peer_sm && view.peer.port->is_sm()) {
        Record& other = add(28, &view.peer);
        put(other, 4, std::span(view.peer_sm->bytes()).first(24));
        store_big_endian<8>(other, 12, 0);  // SM_Keys are nobody's business
      }
      break;
    }
    case kLinkRecord:
      layout = kLinkLayout;
      for (const auto& [from, to] : {std::pair(&view.own, &view.peer), std::pair(&view.peer, &view.own)}) {
        Record& record = add(6, from);
        record[2] = from->node->local_port();
        record[3] = to->node->local_port();
        store_big_endian<2>(record, 4, to->port->lid().value());
      }
      break;
    case kPkeyTableRecord:
      if (!query.trusted) return {static_cast<std::uint16_t>(kInvalidRequest)};
      layout = kPkeyTableLayout;
      for (const End* end : query.ends()) {
        if (!end->pkeys) continue;
        Record& record = add(72, end);
        record[4] = end->node->local_port();
        put(record, 8, end->pkeys->bytes());
      }
      break;
    case kGuidInfoRecord:
      layout = kGuidInfoLayout;
      for (const End* end : query.ends()) {
        Record& record = add(72, end);
        store_big_endian<8>(record, 8, end->node->port_guid().value());
      }
      break;
    case kSwitchInfoRecord:
    case kLinearForwardingRecord:
    case kRandomForwardingRecord:
    case kMulticastForwardingRecord:
      return {};  // there is no switch
    default:
      return {static_cast<std::uint16_t>(verbs::MadStatus::attribute_not_supported)};
  }
  std::uint64_t mask = query.mask;
  if (query.attribute == kPortInfoRecord && query.match_capabilities && (mask & kCapabilityMask) != 0) {
    mask &= ~kCapabilityMask;
    const auto wanted = load_big_endian<4>(query.data, kCapabilityMaskAt);
    std::erase_if(all, [&](const Record& record) {
      return (load_big_endian<4>(record, kCapabilityMaskAt) & wanted) != wanted;
    });
  }
  std::erase_if(all, [&](const Record& record) { return !matches(record, query.data, layout, mask); });
  return {kOk, std::move(all)};
}

SubnetAdministrator::Result SubnetAdministrator::paths(const Query& query) const {
  using namespace path;
  const auto wanted = [&](std::uint64_t component, std::size_t at) {
    return query.has(component) ? std::optional(gid_at(query.data, at)) : std::nullopt;
  };
  const auto source = wanted(kSgid, kSgidAt), destination = wanted(kDgid, kDgidAt);
  for (const auto& asked : {source, destination})
    if (asked && !is_gid_of(*asked, query.view.own) && !is_gid_of(*asked, query.view.peer))
      return {kInvalidGid};
  const auto pkey = static_cast<std::uint16_t>(load_big_endian<2>(query.data, kPkeyAt));
  if (query.has(kPkey) && (pkey | 0x8000) != kDefaultPkey) return {kNoRecords};
  if (query.has(kSl) && (query.data[kQosAt + 1] & 0x0F) != 0) return {kNoRecords};
  if (query.has(kRawTraffic) && (query.data[kFlowAt] & 0x80) != 0) return {kNoRecords};
  const PortInfo& port = *query.view.own.port;
  const auto mtu = choose_mtu(port.neighbor_mtu(), query.data[kMtuAt], query.has(kMtu | kMtuSelector));
  const auto rate = choose_rate(rate_code(port), query.data[kRateAt], query.has(kRate | kRateSelector));
  const auto life = choose_lifetime(query.data[kLifeAt], query.has(kLife | kLifeSelector));
  Result result;
  if (!mtu || !rate || !life) return result;
  for (const End* from : query.ends())
    for (const End* to : query.ends()) {
      if (source && !is_gid_of(*source, *from)) continue;
      if (destination && !is_gid_of(*destination, *to)) continue;
      if (query.has(kSlid) && !is_lid_of(query.lid_at(kSlidAt), *from)) continue;
      if (query.has(kDlid) && !is_lid_of(query.lid_at(kDlidAt), *to)) continue;
      Record& record = result.records.emplace_back(kSize);
      put(record, kServiceIdAt, std::span(query.data).first(8));
      put(record, kDgidAt, destination.value_or(gid(to->port->gid_prefix(), to->node->port_guid())));
      put(record, kSgidAt, source.value_or(gid(from->port->gid_prefix(), from->node->port_guid())));
      store_big_endian<2>(record, kDlidAt,
                          query.has(kDlid) ? query.lid_at(kDlidAt).value() : to->port->lid().value());
      store_big_endian<2>(record, kSlidAt,
                          query.has(kSlid) ? query.lid_at(kSlidAt).value() : from->port->lid().value());
      put(record, kFlowAt, std::span(query.data).subspan(kFlowAt, 3));  // flow label
      record[kFlowAt] &= 0x0F;
      record[kTrafficClassAt] = query.data[kTrafficClassAt];
      record[kNumbPathAt] = 0x81;  // reversible, one
      store_big_endian<2>(record, kPkeyAt, kDefaultPkey);
      record[kMtuAt] = static_cast<std::uint8_t>(kExactly << 6 | *mtu);
      record[kRateAt] = static_cast<std::uint8_t>(kExactly << 6 | *rate);
      record[kLifeAt] = static_cast<std::uint8_t>(kExactly << 6 | *life);
    }
  const std::size_t most = query.data[kNumbPathAt] & 0x7F;
  if (query.has(kNumbPath) && most != 0 && result.records.size() > most) result.records.resize(most);
  return result;
}

// --- multicast ---------------------------------------------------------------------------------------------

void SubnetAdministrator::make_broadcast_group(const View& view) {
  using namespace member;
  Group& group = groups_[kBroadcastGroup];
  group.permanent = true;
  group.record.resize(kSize);
  Record& record = group.record;
  put(record, kMgidAt, kBroadcastGroup);
  store_big_endian<4>(record, kQkeyAt, kIpoibQkey);
  store_big_endian<2>(record, kMlidAt, kFirstMlid);
  record[kMtuAt] = static_cast<std::uint8_t>(kExactly << 6 | view.own.port->neighbor_mtu());
  store_big_endian<2>(record, kPkeyAt, kDefaultPkey);
  record[kRateAt] = static_cast<std::uint8_t>(kExactly << 6 | rate_code(*view.own.port));
  record[kLifeAt] = static_cast<std::uint8_t>(kExactly << 6 | kPacketLifetime);
  record[kScopeAt] = static_cast<std::uint8_t>((kBroadcastGroup[1] & 0x0F) << 4);
}

SubnetAdministrator::Result SubnetAdministrator::memberships(const Query& query) const {
  using namespace member;
  Result result;
  for (const auto& [mgid, group] : groups_) {
    std::vector<Record> records;
    if (query.trusted) {
      for (const auto& [port, state] : group.members) {
        Record& record = records.emplace_back(group.record);
        put(record, kPortGidAt, port);
        record[kScopeAt] |= state;
      }
    } else {  // who the members are is not told to everybody
      records.push_back(group.record);
    }
    for (Record& record : records)
      if (matches(record, query.data, kMcMemberLayout, query.mask))
        result.records.push_back(std::move(record));
  }
  return result;
}

SubnetAdministrator::Result SubnetAdministrator::join(const Query& query) {
  using namespace member;
  if (!query.has(kToJoin)) return {kInsufficientComponents};
  const std::uint8_t state = query.data[kScopeAt] & 0x0F;
  const Gid port = gid_at(query.data, kPortGidAt);
  const bool known = is_gid_of(port, query.view.own) || is_gid_of(port, query.view.peer);
  if (state == 0 || !known) return {kInvalidRequest};
  const PortInfo& link = *query.view.own.port;
  const auto mtu = choose_mtu(link.neighbor_mtu(), query.data[kMtuAt], query.has(kMtu | kMtuSelector));
  const auto rate = choose_rate(rate_code(link), query.data[kRateAt], query.has(kRate | kRateSelector));

  Gid mgid = gid_at(query.data, kMgidAt);
  auto found = groups_.find(mgid);
  if (found == groups_.end()) {
    if (!query.has(kToCreate)) return {kInsufficientComponents};
    if ((state & (kFullMember | kSendOnlyFullMember)) == 0 || !mtu || !rate) return {kInvalidRequest};
    const auto pkey = static_cast<std::uint16_t>(load_big_endian<2>(query.data, kPkeyAt));
    if ((pkey | 0x8000) != kDefaultPkey) return {kInvalidRequest};
    std::uint16_t mlid = kFirstMlid;
    const auto taken = [&] {
      return std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
        return load_big_endian<2>(entry.second.record, kMlidAt) == mlid;
      });
    };
    while (mlid <= kLastMlid && taken()) ++mlid;
    if (mlid > kLastMlid) return {0x0100};  // no resources
    const bool chosen = mgid == Gid{};
    if (chosen) {  // one may be chosen: transient, of the asked scope, from the MLID
      const std::uint8_t scope = query.has(kScope) ? query.data[kScopeAt] >> 4 : 2;
      mgid = {0xFF, static_cast<std::uint8_t>(0x10 | scope), 0xA0, 0x1B};
      store_big_endian<2>(mgid, 14, mlid);
    }
    const bool unknown_flags = (mgid[1] & 0xE0) != 0;
    if (mgid[0] != 0xFF || unknown_flags || (!chosen && is_reserved(mgid))) return {kInvalidRequest};
    Group group;
    group.record.assign(query.data.begin(), query.data.begin() + kSize);
    put(group.record, kMgidAt, mgid);
    put(group.record, kPortGidAt, Gid{});
    store_big_endian<2>(group.record, kMlidAt, mlid);
    group.record[kMtuAt] = static_cast<std::uint8_t>(kExactly << 6 | *mtu);
    group.record[kRateAt] = static_cast<std::uint8_t>(kExactly << 6 | *rate);
    group.record[kLifeAt] = static_cast<std::uint8_t>(kExactly << 6 | kPacketLifetime);
    group.record[kScopeAt] = static_cast<std::uint8_t>((mgid[1] & 0x0F) << 4);
    store_big_endian<2>(group.record, kPkeyAt, pkey | 0x8000U);
    std::fill(group.record.begin() + kScopeAt + 1, group.record.end(), std::uint8_t{0});
    found = groups_.emplace(mgid, std::move(group)).first;
  } else {
    // What the client names beyond the group must be what the group is.
    constexpr std::uint64_t kCompared = kQkey | kPkey | kSl | kFlow | kTrafficClass;
    Record wanted(query.data.begin(), query.data.begin() + kSize);
    wanted[kPkeyAt] |= 0x80;
    if (!matches(found->second.record, wanted, kMcMemberLayout, query.mask & kCompared))
      return {kInvalidRequest};
    const Record& record = found->second.record;
    const auto fits_mtu =
        choose_mtu(record[kMtuAt] & 0x3F, query.data[kMtuAt], query.has(kMtu | kMtuSelector));
    const auto fits_rate =
        choose_rate(record[kRateAt] & 0x3F, query.data[kRateAt], query.has(kRate | kRateSelector));
    if (!fits_mtu || !fits_rate) return {kInvalidRequest};
  }
  ++counters_.joins;
  Group& group = found->second;
  std::uint8_t& joined = group.members[port];
  joined |= state;
  Record record = group.record;
  put(record, kPortGidAt, port);
  record[kScopeAt] |= joined;
  return {kOk, {std::move(record)}};
}

SubnetAdministrator::Result SubnetAdministrator::leave(const Query& query) {
  using namespace member;
  if (!query.has(kToJoin)) return {kInsufficientComponents};
  const auto found = groups_.find(gid_at(query.data, kMgidAt));
  if (found == groups_.end()) return {kInvalidRequest};
  Group& group = found->second;
  const Gid port = gid_at(query.data, kPortGidAt);
  const auto member = group.members.find(port);
  const std::uint8_t state = query.data[kScopeAt] & 0x0F;
  if (member == group.members.end() || (member->second & state) == 0) return {kInvalidRequest};
  ++counters_.leaves;
  member->second &= static_cast<std::uint8_t>(~state);
  Record record = group.record;
  put(record, kPortGidAt, port);
  record[kScopeAt] |= member->second;
  if (member->second == 0) group.members.erase(member);
  const bool used = std::any_of(group.members.begin(), group.members.end(), [](const auto& entry) {
    return (entry.second & (kFullMember | kSendOnlyFullMember)) != 0;
  });
  if (!used && !group.permanent) groups_.erase(found);
  return {kOk, {std::move(record)}};
}

}  // namespace fabric::daemon::subnet
