// Tables: made from the view whenever somebody asks, and kept where they equal the template. There are two
// ports, so there are few.
//
// SL2VL and VL arbitration tables are what the ports say, and are left out until they have said it. A port
// has four blocks of VL arbitration whatever it can do; those beyond its capability are empty.
#include "fabricd/subnet/administration/records.hpp"

#include <utility>

namespace fabric::daemon::subnet::administration {

using verbs::load_big_endian;
using verbs::SmState;
using verbs::store_big_endian;

namespace {

constexpr std::uint16_t kNodeLayout[] = {16, 16, 8, 8, 8, 8, 64, 64, 64, 16, 16, 32, 8, 24, 512};
constexpr std::uint16_t kPortInfoLayout[] = {
    16, 8, 8, 64, 64, 16, 16, 32, 16, 16, 8,  8,  8,  8, 4, 4, 4, 4, 2, 3, 3,  4, 4,  4,  4, 4, 4, 8, 8,
    8,  4, 4, 3,  5,  4,  1,  1,  1,  1,  16, 16, 16, 8, 3, 5, 3, 5, 4, 4, 16, 8, 24, 16, 4, 4, 3, 5};
constexpr std::uint16_t kSlToVlLayout[] = {16, 8, 8, 32};
constexpr std::uint16_t kVlArbitrationLayout[] = {16, 8, 8, 32};
constexpr std::uint16_t kSmInfoLayout[] = {16, 16, 64, 64, 32, 4, 4};
constexpr std::uint16_t kLinkLayout[] = {16, 8, 8, 16};
constexpr std::uint16_t kPkeyTableLayout[] = {16, 16, 8, 24, 512};
constexpr std::uint16_t kGuidInfoLayout[] = {16, 8, 8, 32, 64, 64, 64, 64, 64, 64, 64, 64};

// PortInfoRecord.
constexpr std::uint64_t kCapabilityMask = bit(7);
constexpr std::size_t kCapabilityMaskAt = 4 + 20;
constexpr std::uint32_t kMatchCapabilities = 1U << 31;  ///< of the attribute modifier

// SL2VL and VL arbitration records tell the ports of switches apart; of an adapter's port there is one.
constexpr std::uint64_t kOutputPort = bit(1), kSwitchPorts = bit(1) | bit(2);

constexpr std::uint16_t kVlArbitrationBlocks = 4;
constexpr std::uint32_t kQp1 = 1, kQp1Qkey = 0x80010000;

/// 13.4.8.1 and 15.2.1.1.
Record class_port_info() {
  constexpr std::uint16_t kGetSetNotice = 1U << 1, kUdMulticast = 1U << 9, kMultiPath = 1U << 10,
                          kCapabilityMaskMatch = 1U << 13;
  constexpr std::uint32_t kFullPortInfoRecord = 1U << 6, kExtendedSpeeds = 1U << 7,
                          kMulticastServices = 1U << 8, kSendOnlyFullMember = 1U << 12,
                          kLinkWidth2x = 1U << 13, kLinkSpeedHdr = 1U << 15;
  constexpr std::uint32_t kResponseTime = 16;  // 4.096 us * 2^16 = 0.27 s
  Record record(72);
  record[0] = 1;  // base version
  record[1] = 2;  // class version
  store_big_endian<2>(record, 2, kGetSetNotice | kUdMulticast | kMultiPath | kCapabilityMaskMatch);
  store_big_endian<4>(record, 4,
                      (kFullPortInfoRecord | kExtendedSpeeds | kMulticastServices | kSendOnlyFullMember |
                       kLinkWidth2x | kLinkSpeedHdr)
                              << 5 |
                          kResponseTime);
  // Nobody is sent elsewhere; what would be there is where everybody is already.
  store_big_endian<4>(record, 32, kQp1);
  store_big_endian<4>(record, 36, kQp1Qkey);
  store_big_endian<4>(record, 68, kQp1Qkey);  // of traps
  return record;
}

/// The records of one type, as far as they equal the template.
class Table {
 public:
  Table(const Query& query, Layout layout, std::size_t record_size)
      : mask(query.mask), query_(query), layout_(layout), size_(record_size) {}

  /// `fill` writes the record of a port behind its LID. A port answers to all LIDs of its block; records have
  /// the first.
  template <class Fill>
  void add(const End& end, Fill fill) {
    const bool by_lid = query_.has(bit(0));
    if (by_lid && !is_lid_of(query_.lid_at(0), end)) return;
    Record record(size_);
    store_big_endian<2>(record, 0, end.port->lid().value());
    fill(record);
    if (matches(record, query_.data, layout_, mask & ~bit(0))) result.records.push_back(std::move(record));
  }

  std::uint64_t mask;  ///< of components that are compared
  Result result;

 private:
  const Query& query_;
  Layout layout_;
  std::size_t size_;
};

Result ports(const Query& query) {
  Table table(query, kPortInfoLayout, 68);
  const auto wanted = query.number_at<4>(kCapabilityMaskAt);
  // "has all of these capabilities" instead of "has exactly these"
  const bool capabilities = (query.modifier & kMatchCapabilities) != 0 && (query.mask & kCapabilityMask) != 0;
  if (capabilities) table.mask &= ~kCapabilityMask;
  for (const End* end : query.ends()) {
    if (capabilities && (end->port->capability_mask() & wanted) != wanted) continue;
    table.add(*end, [&](Record& record) {
      record[2] = end->node->local_port();
      put(record, 4, end->port->bytes());
      if (!query.trusted) store_big_endian<8>(record, 4, 0);  // the M_Key
    });
  }
  return std::move(table.result);
}

Result managers(const Query& query) {
  const View& view = query.view;
  Table table(query, kSmInfoLayout, 28);
  table.add(view.own, [&](Record& record) {
    store_big_endian<8>(record, 4, view.own.node->port_guid().value());
    store_big_endian<4>(record, 20, view.counters.requests);
    record[24] = static_cast<std::uint8_t>(view.priority << 4 | static_cast<unsigned>(SmState::master));
  });
  if (view.peer_sm && view.peer.port->is_sm())
    table.add(view.peer, [&](Record& record) {
      put(record, 4, std::span(view.peer_sm->bytes()).first(24));
      store_big_endian<8>(record, 12, 0);  // SM_Keys are nobody's business
    });
  return std::move(table.result);
}

}  // namespace

Result tables(const Query& query) {
  const View& view = query.view;
  switch (query.attribute) {
    case Attribute::class_port_info:
      return {Status::ok, {class_port_info()}};
    case Attribute::node_record: {
      Table table(query, kNodeLayout, 108);
      for (const End* end : query.ends())
        table.add(*end, [&](Record& record) {
          put(record, 4, std::span(end->node->bytes()).first(40));
          std::copy_n(end->description.begin(), std::min<std::size_t>(end->description.size(), 64),
                      record.begin() + 44);
        });
      return std::move(table.result);
    }
    case Attribute::port_info_record:
      return ports(query);
    case Attribute::sm_info_record:
      return managers(query);
    case Attribute::link_record: {
      Table table(query, kLinkLayout, 6);
      for (const auto& [from, to] : {std::pair(&view.own, &view.peer), std::pair(&view.peer, &view.own)})
        table.add(*from, [&, from = from, to = to](Record& record) {
          record[2] = from->node->local_port();
          record[3] = to->node->local_port();
          store_big_endian<2>(record, 4, to->port->lid().value());
        });
      return std::move(table.result);
    }
    case Attribute::sl_to_vl_record: {
      Table table(query, kSlToVlLayout, 16);
      table.mask &= ~kSwitchPorts;
      for (const End* end : query.ends())
        if (end->sl_to_vl)
          table.add(*end,
                    [&](Record& record) { put(record, 8, std::span(end->sl_to_vl->bytes()).first(8)); });
      return std::move(table.result);
    }
    case Attribute::vl_arbitration_record: {
      Table table(query, kVlArbitrationLayout, 72);
      table.mask &= ~kOutputPort;
      for (const End* end : query.ends()) {
        if (end->vl_arbitration.empty()) continue;
        for (std::uint16_t block = 1; block <= kVlArbitrationBlocks; ++block)
          table.add(*end, [&](Record& record) {
            record[2] = end->node->local_port();
            record[3] = static_cast<std::uint8_t>(block);
            if (const auto known = end->vl_arbitration.find(block); known != end->vl_arbitration.end())
              put(record, 8, known->second.bytes());
          });
      }
      return std::move(table.result);
    }
    case Attribute::pkey_table_record: {
      if (!query.trusted) return {Status::invalid_request};
      Table table(query, kPkeyTableLayout, 72);
      for (const End* end : query.ends())
        for (const auto& [block, pkeys] : end->pkeys)
          table.add(*end, [&, block = block, &pkeys = pkeys](Record& record) {
            store_big_endian<2>(record, 2, block);
            record[4] = end->node->local_port();
            put(record, 8, pkeys.bytes());
          });
      return std::move(table.result);
    }
    case Attribute::guid_info_record: {
      Table table(query, kGuidInfoLayout, 72);
      for (const End* end : query.ends())
        for (const auto& [block, guids] : end->guids)
          table.add(*end, [&, block = block, &guids = guids](Record& record) {
            record[2] = static_cast<std::uint8_t>(block);
            put(record, 8, guids.bytes());
          });
      return std::move(table.result);
    }
    case Attribute::switch_info_record:
    case Attribute::linear_forwarding_record:
    case Attribute::random_forwarding_record:
    case Attribute::multicast_forwarding_record:
      return {};  // there is no switch
    case Attribute::notice:
    case Attribute::inform_info:
    case Attribute::service_record:
    case Attribute::path_record:
    case Attribute::mc_member_record:
    case Attribute::multi_path_record:
    case Attribute::inform_info_record:
      break;  // the other parts'
  }
  return {Status::unsupported_combination};
}

}  // namespace fabric::daemon::subnet::administration
