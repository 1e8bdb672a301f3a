// Event forwarding (13.4.11): a client subscribes with Set(InformInfo) to events by issuer, type and number;
// when one happens it gets a Report, which it confirms with a ReportResp. A Report without one is sent again,
// with the same TID, three times; then it is given up, and the subscription stays: the client may have been
// busy, and a port that is gone takes its subscriptions along anyway.
//
// Events are the traps that agents of the cable's two adapters send (128 to 145, 256 to 259), and those that
// the subnet manager raises itself (64 to 67: a port or a multicast group has come or gone).
//
// Rules: a subscription with a GID is for events of that issuer, else with a LID range; 0xFFFF is every
// issuer, and every type, trap and device; 0xFFFFFF every producer. Security traps (256 to 259) are reported
// to subscribers who know the SM_Key only. A subscription belongs to the queue pair that it came from, and is
// ended from that port by naming that queue pair.
#include "fabricd/subnet/administration/subscriptions.hpp"

#include <algorithm>

namespace fabric::daemon::subnet::administration {

using verbs::load_big_endian;
using verbs::Mad;
using verbs::MadClass;
using verbs::MadMethod;
using verbs::store_big_endian;
using namespace std::chrono_literals;

namespace {

// InformInfo, and InformInfoRecord which has one behind the subscriber.
constexpr std::size_t kInformInfoSize = 36, kGidAt = 0, kLidBeginAt = 16, kLidEndAt = 18, kReservedAt = 20,
                      kIsGenericAt = 22, kSubscribeAt = 23, kTypeAt = 24, kTrapAt = 26, kQpnAt = 28,
                      kResponseTimeAt = 31, kProducerAt = 33;
constexpr std::size_t kRecordSize = 64, kInformInfoAt = 24;
constexpr std::uint16_t kRecordLayout[] = {128, 16, 48, 128, 16, 16, 16, 8, 8, 16, 16, 24, 3, 5, 8, 24};
// Notice.
constexpr std::size_t kNoticeTypeAt = 0, kNoticeProducerAt = 1, kNoticeTrapAt = 4, kNoticeIssuerLidAt = 6,
                      kNoticeDetailsAt = 10, kNoticeIssuerGidAt = 64;
constexpr std::uint8_t kGenericBit = 0x80, kSubnetManagement = 3;
constexpr std::uint32_t kClassManager = 4;
constexpr std::size_t kDataAt = 56;  ///< of an administration MAD

constexpr std::uint16_t kAny = 0xFFFF;
constexpr std::uint32_t kAnyProducer = 0xFFFFFF;
constexpr std::uint16_t kFirstSecurityTrap = 256, kLastSecurityTrap = 259;

constexpr unsigned kAttempts = 4;
constexpr auto kShortestTimeout = 100ms, kLongestTimeout = 1000ms;
/// What a neighbour may make this host keep.
constexpr std::size_t kMost = 256, kMostReports = 1024;

/// Whether a number is what was asked for.
bool is_wanted(std::uint64_t wanted, std::uint64_t present, std::uint64_t any) {
  return wanted == any || wanted == present;
}

bool wants(const Record& inform, const Notice& notice) {
  const auto& bytes = notice.bytes;
  const auto gid = std::span(inform).subspan(kGidAt, 16);
  if (std::any_of(gid.begin(), gid.end(), [](std::uint8_t byte) { return byte != 0; })) {
    if (!std::equal(gid.begin(), gid.end(), bytes.begin() + kNoticeIssuerGidAt)) return false;
  } else if (const auto first = load_big_endian<2>(inform, kLidBeginAt); first != kAny) {
    const auto end = load_big_endian<2>(inform, kLidEndAt), last = end == 0 ? first : end;
    const auto issuer = load_big_endian<2>(bytes, kNoticeIssuerLidAt);
    if (issuer < first || issuer > last) return false;
  }
  const bool generic = (bytes[kNoticeTypeAt] & kGenericBit) != 0;
  return (inform[kIsGenericAt] != 0) == generic &&
         is_wanted(load_big_endian<2>(inform, kTypeAt), bytes[kNoticeTypeAt] & 0x7FU, kAny) &&
         is_wanted(load_big_endian<2>(inform, kTrapAt), load_big_endian<2>(bytes, kNoticeTrapAt), kAny) &&
         is_wanted(load_big_endian<3>(inform, kProducerAt), load_big_endian<3>(bytes, kNoticeProducerAt),
                   kAnyProducer);
}

bool is_security(const Record& inform) {
  const auto trap = load_big_endian<2>(inform, kTrapAt);
  return inform[kIsGenericAt] != 0 && trap >= kFirstSecurityTrap && trap <= kLastSecurityTrap;
}
bool is_security(const Notice& notice) {
  const auto trap = load_big_endian<2>(notice.bytes, kNoticeTrapAt);
  return (notice.bytes[kNoticeTypeAt] & kGenericBit) != 0 && trap >= kFirstSecurityTrap &&
         trap <= kLastSecurityTrap;
}

/// The same events, whatever they say of subscribing and of response times.
bool same_events(const Record& one, const Record& other) {
  const auto same = [&](std::size_t from, std::size_t to) {
    return std::equal(one.begin() + static_cast<std::ptrdiff_t>(from),
                      one.begin() + static_cast<std::ptrdiff_t>(to),
                      other.begin() + static_cast<std::ptrdiff_t>(from));
  };
  return same(kGidAt, kReservedAt) && same(kIsGenericAt, kSubscribeAt) && same(kTypeAt, kQpnAt) &&
         same(kProducerAt, kInformInfoSize);
}

/// 4.096 us * 2^value, within reason.
std::chrono::milliseconds response_time(const Record& inform) {
  const std::chrono::nanoseconds promised(4096ULL << (inform[kResponseTimeAt] & 0x1F));
  return std::clamp<std::chrono::milliseconds>(std::chrono::ceil<std::chrono::milliseconds>(promised),
                                               kShortestTimeout, kLongestTimeout);
}

}  // namespace

Notice::Notice(const verbs::NoticeAttribute& trap, const Gid& issuer) {
  std::copy(trap.bytes().begin(), trap.bytes().end(), bytes.begin());
  std::copy(issuer.begin(), issuer.end(), bytes.begin() + kNoticeIssuerGidAt);
}

Notice::Notice(std::uint16_t trap, const Gid& about, const End& manager) {
  bytes[kNoticeTypeAt] = kGenericBit | kSubnetManagement;
  store_big_endian<3>(bytes, kNoticeProducerAt, kClassManager);
  store_big_endian<2>(bytes, kNoticeTrapAt, trap);
  store_big_endian<2>(bytes, kNoticeIssuerLidAt, manager.port->lid().value());
  std::copy(about.begin(), about.end(), bytes.begin() + kNoticeDetailsAt + 6);
  const Gid issuer = gid_of(manager);
  std::copy(issuer.begin(), issuer.end(), bytes.begin() + kNoticeIssuerGidAt);
}

Result Subscriptions::change(const Query& query) {
  Record inform(query.data.begin(), query.data.begin() + kInformInfoSize);
  const End* subscriber = end_of(query.view, query.source.lid);
  const std::uint8_t subscribe = inform[kSubscribeAt];
  if (subscriber == nullptr || subscribe > 1) return {Status::invalid_request};
  if (is_security(inform) && !query.trusted) return {Status::invalid_request};
  const Gid issuer = query.gid_at(kGidAt);
  if (issuer != Gid{} && end_of(query.view, issuer) == nullptr) return {Status::invalid_request};
  Result answer{Status::ok, {inform}};  // as it was (o13-12.1.1)

  const auto qpn = subscribe == 1 ? query.source.qpn.value() : load_big_endian<3>(inform, kQpnAt);
  store_big_endian<3>(inform, kQpnAt, qpn);
  const auto present =
      std::find_if(subscriptions_.begin(), subscriptions_.end(), [&](const Subscription& other) {
        return other.address.lid == query.source.lid && other.address.qpn.value() == qpn &&
               same_events(other.inform_info, inform);
      });
  if (subscribe == 0) {
    if (present == subscriptions_.end()) return {Status::invalid_request};
    subscriptions_.erase(present);
    return answer;
  }
  Subscription subscription{std::move(inform), gid_of(*subscriber), query.source, query.trusted};
  if (present != subscriptions_.end()) {
    *present = std::move(subscription);
  } else if (subscriptions_.size() < kMost) {
    subscriptions_.push_back(std::move(subscription));
  } else {
    return {Status::no_resources};
  }
  return answer;
}

Result Subscriptions::records(const Query& query) const {
  Result result;
  for (const Subscription& subscription : subscriptions_) {
    Record record(kRecordSize);
    put(record, 0, subscription.subscriber);
    put(record, kInformInfoAt, subscription.inform_info);
    if (!query.trusted) store_big_endian<3>(record, kInformInfoAt + kQpnAt, 0);  // C15-0.2-1.16
    if (matches(record, query.data, kRecordLayout, query.mask)) result.records.push_back(std::move(record));
  }
  return result;
}

void Subscriptions::report(const Notice& notice, std::vector<SendMad>& out) {
  for (const Subscription& subscription : subscriptions_) {
    if (!wants(subscription.inform_info, notice) || (is_security(notice) && !subscription.trusted)) continue;
    if (reports_.size() >= kMostReports) {
      ++counters_.dropped;
      continue;
    }
    Mad mad(MadClass::subnet_administration, MadMethod::report, static_cast<std::uint16_t>(Attribute::notice),
            0);
    mad.set_tid(next_tid_++);
    std::copy(notice.bytes.begin(), notice.bytes.end(), mad.bytes().begin() + kDataAt);
    ++counters_.reports;
    send({mad, subscription.address, subscription.subscriber, response_time(subscription.inform_info),
          kAttempts},
         out);
  }
}

void Subscriptions::send(Report report, std::vector<SendMad>& out) {
  --report.attempts_left;
  out.push_back({report.mad, report.address, report.timeout});
  const auto tid = static_cast<std::uint32_t>(report.mad.tid());
  reports_.insert_or_assign(tid, report);
}

void Subscriptions::on_response(std::uint32_t tid) {
  if (reports_.erase(tid) != 0) ++counters_.confirmed;
}

void Subscriptions::on_timeout(std::uint32_t tid, std::vector<SendMad>& out) {
  const auto found = reports_.find(tid);
  if (found == reports_.end()) return;
  if (found->second.attempts_left > 0) return send(found->second, out);
  reports_.erase(found);
  ++counters_.unconfirmed;
}

void Subscriptions::forget(const Gid& subscriber) {
  std::erase_if(subscriptions_, [&](const Subscription& s) { return s.subscriber == subscriber; });
  std::erase_if(reports_, [&](const auto& entry) { return entry.second.subscriber == subscriber; });
}

void Subscriptions::forget() {
  subscriptions_.clear();
  reports_.clear();
}

}  // namespace fabric::daemon::subnet::administration
