// The subnet administrator of one cable.
//
//   administration/records.cpp         what the subnet manager knows: nodes, ports, links, tables
//   administration/paths.cpp           paths between ports, and to multicast groups
//   administration/multicast.cpp       groups and their members
//   administration/services.cpp        services and their leases
//   administration/subscriptions.cpp   who wants to hear of what, and Reports
//   this file                          from a datagram to a query and back; when clients' words are forgotten
//
// A query is answered by making all records of its type (there are two ports, so there are few) and keeping
// those that equal the query's template in every component of the mask.
//
// What kernels and tools need from it (Linux 6.1, rdma-core 44, infiniband-diags):
//   - the kernel's SA cache: ClassPortInfo with SendOnlyFullMember in CapabilityMask2;
//   - IPoIB: the broadcast group exists before anybody joins;
//   - IPoIB unicast and rdma_cm: PathRecord by GIDs;
//   - srp_daemon and the like: InformInfo, and Reports;
//   - saquery, osmtest: tables.
//
// No table is large, but answers to GetTable are multi-packet transactions by definition; the kernel's RMPP
// divides, repeats and acknowledges. A GetTable without a match is an empty table, a Get without one is
// NO_RECORDS, a Get with several TOO_MANY_RECORDS.
//
// What clients have said holds as long as this end is the master. When the cable loses its link, the port at
// its other end takes its memberships and subscriptions along (it makes them anew when it is back, as this
// host's do); services stay until their lease ends. When another manager becomes master all is forgotten:
// that one tells the clients, by ClientReregister.
//
// Specification: InfiniBand Architecture, volume 1: 15.2 (records), 15.4 (operations), 13.4.11 (event
// forwarding). Departures: records of ports and paths are not filtered by the asker's partition, since every
// port of a cable is in the default one; no alias GUIDs (Set of GUIDInfoRecord); an SM_Key other than 0 and 1
// makes a request unanswerable, as with OpenSM.
//
// Threading: none.
#include "fabricd/subnet/subnet_administrator.hpp"

#include <algorithm>
#include <utility>

#include "fabricd/subnet/administration/paths.hpp"
#include "fabricd/subnet/administration/records.hpp"

namespace fabric::daemon::subnet {

using administration::Attribute;
using administration::ManagerTrap;
using administration::Query;
using administration::Record;
using administration::Result;
using administration::Status;
using verbs::load_big_endian;
using verbs::Mad;
using verbs::MadMethod;
using verbs::SmState;
using verbs::store_big_endian;

namespace {

// Offsets in a MAD of this class (15.2.1.1).
constexpr std::size_t kRmppVersionAt = 24, kRmppTypeAt = 25, kRmppFlagsAt = 26, kSmKeyAt = 36,
                      kAttributeOffsetAt = 44, kMaskAt = 48, kDataAt = 56;
constexpr std::uint8_t kRmppVersion = 1, kRmppData = 1, kRmppActive = 1;
constexpr std::uint64_t kTrustedKey = 1;

bool is_complete(const View& view) {
  return view.own.node && view.own.port && view.peer.node && view.peer.port;
}

bool is_table(MadMethod method) {
  return method == MadMethod::get_table || method == MadMethod::get_multi;
}

}  // namespace

std::vector<AdministratorAction> SubnetAdministrator::handle(TimePoint now, const View& view,
                                                             const AdministratorEvent& event) {
  now_ = now;
  view_ = &view;
  std::visit([this](const auto& e) { on(e); }, event);
  view_ = nullptr;
  return std::exchange(actions_, {});
}

SubnetAdministrator::Counters SubnetAdministrator::counters() const {
  Counters counters = counters_;
  counters.multicast = multicast_.counters();
  counters.subscriptions = subscriptions_.counters();
  return counters;
}

// --- events ------------------------------------------------------------------------------------------------

void SubnetAdministrator::on(const AdministrationReceived& event) {
  const Mad& mad = event.mad;
  if (mad.is_response()) return subscriptions_.on_response(static_cast<std::uint32_t>(mad.tid()));
  const std::uint64_t key = load_big_endian<8>(mad.bytes(), kSmKeyAt);
  if (view_->state != SmState::master || !is_complete(*view_) || (key != 0 && key != kTrustedKey)) {
    ++counters_.ignored;
    return;
  }
  ++counters_.queries;
  multicast_.make_broadcast_group(*view_);
  Query query{.view = *view_,
              .now = now_,
              .source = event.source,
              .method = mad.method(),
              .attribute = Attribute{mad.attribute()},
              .modifier = mad.modifier(),
              .mask = load_big_endian<8>(mad.bytes(), kMaskAt),
              .trusted = key == kTrustedKey};
  std::copy_n(mad.bytes().begin() + kDataAt, query.data.size(), query.data.begin());

  Result result = carry_out(query);
  if (query.method == MadMethod::get && result.status == Status::ok) {
    if (result.records.empty()) result.status = Status::no_records;
    // Of paths one is as good as another.
    if (result.records.size() > 1 && query.attribute != Attribute::path_record)
      result.status = Status::too_many_records;
  }
  answer(event, std::move(result), is_table(query.method));
  report_group_changes();
}

void SubnetAdministrator::on(const ReportTimedOut& event) {
  std::vector<SendMad> again;
  subscriptions_.on_timeout(event.tid, again);
  actions_.insert(actions_.end(), again.begin(), again.end());
}

void SubnetAdministrator::on(const TrapReceived& event) {
  if (view_->state != SmState::master || !is_complete(*view_)) return;
  const End* issuer = administration::end_of(*view_, event.notice.issuer());
  if (issuer == nullptr) return;
  ++counters_.traps;
  std::vector<SendMad> reports;
  subscriptions_.report({event.notice, administration::gid_of(*issuer)}, reports);
  actions_.insert(actions_.end(), reports.begin(), reports.end());
}

void SubnetAdministrator::on(const CableChanged&) {
  const View& view = *view_;
  if (view.state == SmState::standby || view.state == SmState::not_active) {
    multicast_.forget();
    services_.forget();
    subscriptions_.forget();
    own_.reset();
    peer_.reset();
    gone_.reset();
    return;
  }
  if (view.stage == Stage::down && peer_) {
    gone_ = std::exchange(peer_, std::nullopt);
    multicast_.forget(*gone_);
    subscriptions_.forget(*gone_);
  }
  if (view.stage != Stage::settled || view.state != SmState::master || !view.active()) return;
  // What has gone is told when the port has a link to tell it through.
  if (const auto gone = std::exchange(gone_, std::nullopt)) report(ManagerTrap::port_out_of_service, *gone);
  report_group_changes();
  const Gid own = administration::gid_of(view.own), peer = administration::gid_of(view.peer);
  if (std::exchange(own_, own) != own) report(ManagerTrap::port_in_service, own);
  if (std::exchange(peer_, peer) != peer) report(ManagerTrap::port_in_service, peer);
}

void SubnetAdministrator::report(ManagerTrap trap, const Gid& about) {
  std::vector<SendMad> reports;
  subscriptions_.report({static_cast<std::uint16_t>(trap), about, view_->own}, reports);
  actions_.insert(actions_.end(), reports.begin(), reports.end());
}

void SubnetAdministrator::report_group_changes() {
  for (const auto& change : multicast_.take_changes())
    report(change.created ? ManagerTrap::group_created : ManagerTrap::group_deleted, change.mgid);
}

// --- queries -----------------------------------------------------------------------------------------------

Result SubnetAdministrator::carry_out(const Query& query) {
  const bool reading = query.method == MadMethod::get || query.method == MadMethod::get_table;
  const bool writing = query.method == MadMethod::set, removing = query.method == MadMethod::remove;
  if (!reading && !writing && !removing && query.method != MadMethod::get_multi)
    return {Status::method_not_supported};
  Result unsupported{Status::unsupported_combination};
  switch (query.attribute) {
    case Attribute::path_record:
      return reading ? administration::paths(query, multicast_) : unsupported;
    case Attribute::multi_path_record:
      return query.method == MadMethod::get_multi ? administration::multi_paths(query) : unsupported;
    case Attribute::mc_member_record:
      return reading    ? multicast_.records(query)
             : writing  ? multicast_.join(query)
             : removing ? multicast_.leave(query)
                        : unsupported;
    case Attribute::service_record:
      return reading    ? services_.records(query)
             : writing  ? services_.advertise(query)
             : removing ? services_.withdraw(query)
                        : unsupported;
    case Attribute::inform_info:
      return writing ? subscriptions_.change(query) : unsupported;
    case Attribute::inform_info_record:
      return reading ? subscriptions_.records(query) : unsupported;
    case Attribute::class_port_info:
    case Attribute::notice:
    case Attribute::node_record:
    case Attribute::port_info_record:
    case Attribute::sl_to_vl_record:
    case Attribute::switch_info_record:
    case Attribute::linear_forwarding_record:
    case Attribute::random_forwarding_record:
    case Attribute::multicast_forwarding_record:
    case Attribute::sm_info_record:
    case Attribute::link_record:
    case Attribute::guid_info_record:
    case Attribute::pkey_table_record:
    case Attribute::vl_arbitration_record:
      return reading ? administration::tables(query) : unsupported;
  }
  return unsupported;
}

void SubnetAdministrator::answer(const AdministrationReceived& event, Result result, bool table) {
  ++counters_.answers;
  Mad header = verbs::response_to(event.mad);
  header.set_status(static_cast<std::uint16_t>(result.status));
  if (Attribute{header.attribute()} == Attribute::multi_path_record)  // o15-0.2.7
    header.set_attribute(static_cast<std::uint16_t>(Attribute::path_record));
  auto& bytes = header.bytes();
  // No RMPP, no SM_Key (C15-0.1.5).
  std::fill(bytes.begin() + kRmppVersionAt, bytes.begin() + kAttributeOffsetAt, std::uint8_t{0});
  const std::size_t size = result.records.empty() ? 0 : result.records.front().size();
  const std::size_t stride = (size + 7) / 8 * 8;
  store_big_endian<2>(bytes, kAttributeOffsetAt, result.status == Status::ok ? stride / 8 : 0);
  Answer answer{.bytes = {}, .destination = event.source};
  if (result.status != Status::ok) {
    ++counters_.refused;  // the request comes back as it was
    answer.bytes.assign(bytes.begin(), bytes.end());
  } else if (table) {
    bytes[kRmppVersionAt] = kRmppVersion;
    bytes[kRmppTypeAt] = kRmppData;
    bytes[kRmppFlagsAt] = kRmppActive;
    answer.bytes.reserve(kDataAt + result.records.size() * stride);
    answer.bytes.assign(bytes.begin(), bytes.begin() + kDataAt);
    for (Record& record : result.records) {
      record.resize(stride);
      answer.bytes.insert(answer.bytes.end(), record.begin(), record.end());
    }
  } else {
    std::fill(bytes.begin() + kDataAt, bytes.end(), std::uint8_t{0});
    std::copy(result.records.front().begin(), result.records.front().end(), bytes.begin() + kDataAt);
    answer.bytes.assign(bytes.begin(), bytes.end());
  }
  actions_.emplace_back(std::move(answer));
}

}  // namespace fabric::daemon::subnet
