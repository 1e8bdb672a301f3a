// Services: who offers what at which GID, for as long as they have said (15.2.5.14).
//
// A service is known by its ServiceID, ServiceGID and ServiceP_Key together; advertising it again replaces
// it. A ServiceKey that it was given protects it from other ports: their replacing and withdrawing it wants
// the same key, and untrusted askers do not see it. What a lease has left is said in whole seconds, rounded
// up; services whose lease has run out are dropped when anybody asks, since nobody can notice before.
//
// The specification leaves open whether the service's GID must be a port's; any is taken, as by OpenSM, since
// services have multicast GIDs too.
#include "fabricd/subnet/administration/services.hpp"

#include <algorithm>

namespace fabric::daemon::subnet::administration {

using verbs::load_big_endian;
using verbs::store_big_endian;

namespace {

constexpr std::uint16_t kLayout[] = {64, 128, 16, 16, 32, 128, 512, 8,  8,  8,  8,  8,  8,
                                     8,  8,   8,  8,  8,  8,   8,   8,  8,  8,  16, 16, 16,
                                     16, 16,  16, 16, 16, 32,  32,  32, 32, 64, 64};
constexpr std::uint64_t kId = bit(0), kGid = bit(1), kPkey = bit(2), kLease = bit(4);
constexpr std::size_t kSize = 176, kPkeyAt = 24, kReservedAt = 26, kLeaseAt = 28, kKeyAt = 32, kKeySize = 16;
constexpr std::size_t kIdentitySize = 26;  ///< ID, GID, P_Key
constexpr std::uint32_t kForEver = 0xFFFFFFFF;
/// What a neighbour may make this host keep: 1024 * 176 bytes.
constexpr std::size_t kMost = 1024;

std::span<const std::uint8_t> key_of(const Record& record) {
  return std::span(record).subspan(kKeyAt, kKeySize);
}

/// The record of a request, with what it left open.
Record described(const Query& query) {
  Record record(query.data.begin(), query.data.begin() + kSize);
  if (!query.has(kPkey)) store_big_endian<2>(record, kPkeyAt, kDefaultPkey);
  if (!query.has(kLease)) store_big_endian<4>(record, kLeaseAt, kForEver);
  store_big_endian<2>(record, kReservedAt, 0);
  return record;
}

std::optional<Gid> owner_of(const Query& query) {
  const End* asker = end_of(query.view, query.source.lid);
  return asker == nullptr ? std::nullopt : std::optional(gid_of(*asker));
}

/// Whoever has advertised a service, and whoever knows its key.
bool may_change(const Services::Service& service, const Record& request, const Query& query) {
  const auto key = key_of(service.record);
  if (std::all_of(key.begin(), key.end(), [](std::uint8_t byte) { return byte == 0; })) return true;
  if (std::equal(key.begin(), key.end(), key_of(request).begin())) return true;
  return service.owner == owner_of(query);
}

void hide_key(Record& record) {
  std::fill_n(record.begin() + kKeyAt, kKeySize, std::uint8_t{0});
}

}  // namespace

void Services::expire(TimePoint now) {
  std::erase_if(services_,
                [&](const Service& service) { return service.lease_ends && *service.lease_ends <= now; });
}

std::vector<Services::Service>::iterator Services::find(const Record& identity) {
  return std::find_if(services_.begin(), services_.end(), [&](const Service& service) {
    return std::equal(identity.begin(), identity.begin() + kIdentitySize, service.record.begin());
  });
}

Result Services::records(const Query& query) {
  expire(query.now);
  Result result;
  for (Service& service : services_) {
    if (!matches(service.record, query.data, kLayout, query.mask & ~kLease)) continue;
    Record& record = result.records.emplace_back(service.record);
    if (service.lease_ends) {
      const auto left = std::chrono::ceil<std::chrono::seconds>(*service.lease_ends - query.now);
      store_big_endian<4>(record, kLeaseAt, static_cast<std::uint64_t>(left.count()));
    }
    if (!query.trusted) hide_key(record);
  }
  return result;
}

Result Services::advertise(const Query& query) {
  expire(query.now);
  if (!query.has(kId | kGid)) return {Status::invalid_request};
  if (query.has(kPkey) && query.number_at<2>(kPkeyAt) != 0 &&
      !is_default_partition(query.number_at<2>(kPkeyAt)))
    return {Status::invalid_request};
  const Record record = described(query);
  Service service{record, owner_of(query), std::nullopt};
  const auto lease = load_big_endian<4>(record, kLeaseAt);
  if (lease != kForEver) service.lease_ends = query.now + std::chrono::seconds(lease);
  const auto present = find(record);
  if (present == services_.end()) {
    if (services_.size() >= kMost) return {Status::no_resources};
    services_.push_back(std::move(service));
  } else if (may_change(*present, record, query)) {
    *present = std::move(service);
  } else {
    return {Status::invalid_request};
  }
  Result result{Status::ok, {record}};
  if (!query.trusted) hide_key(result.records.front());
  return result;
}

Result Services::withdraw(const Query& query) {
  expire(query.now);
  const Record record = described(query);
  const auto present = find(record);
  if (present == services_.end()) return {Status::no_records};
  if (!may_change(*present, record, query)) return {Status::invalid_request};
  Result result{Status::ok, {std::move(present->record)}};
  services_.erase(present);
  if (!query.trusted) hide_key(result.records.front());
  return result;
}

}  // namespace fabric::daemon::subnet::administration
