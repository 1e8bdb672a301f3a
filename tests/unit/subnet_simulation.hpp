// A cable with two adapters in simulated time: their SMAs answer as the specification says, the cable loses,
// duplicates and delays, and a subnet manager core may run at each end. For tests.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "fabricd/subnet/subnet_manager.hpp"

namespace fabric::daemon::subnet {

using namespace std::chrono_literals;
using verbs::Mad;
using verbs::MadMethod;
using verbs::NodeInfo;
using verbs::PkeyTable;
using verbs::PortInfo;
using verbs::PortState;
using verbs::SmAttribute;
using verbs::SmInfo;
using verbs::SmState;

/// The subnet management agent of one port.
struct Sma {
  NodeInfo node;
  PortInfo port;
  PkeyTable pkeys;
  verbs::SlToVlTable sl_to_vl;
  std::uint8_t description = 'n';
  unsigned sets = 0;
  unsigned reregistrations = 0;
  bool supports_lmc = true;
  bool hides_m_key = false;  ///< protection level 1

  Sma(Guid node_guid, Guid port_guid, std::uint8_t number) {
    std::array<std::uint8_t, 64> bytes{};
    bytes[2] = 1;
    bytes[3] = 2;
    verbs::store_big_endian<8>(bytes, 4, node_guid.value());
    verbs::store_big_endian<8>(bytes, 12, node_guid.value());
    verbs::store_big_endian<8>(bytes, 20, port_guid.value());
    verbs::store_big_endian<2>(bytes, 28, 32);  // PartitionCap
    bytes[36] = number;
    node = NodeInfo(std::span<const std::uint8_t, 64>(bytes));
    bytes = {};
    verbs::store_big_endian<4>(bytes, 20, 1U << 25);  // client reregistration
    bytes[28] = number;
    bytes[30] = 3;     // 1x and 4x
    bytes[31] = 2;     // 4x
    bytes[37] = 0x40;  // VLCap VL0-7
    bytes[62] = 0x23;  // 25 Gbit/s a lane, and 14
    bytes[41] = 0x05;  // MTUCap 4096
    bytes[39] = 8;     // VLArbitrationHighCap
    bytes[40] = 8;     // VLArbitrationLowCap
    bytes[50] = 8;     // GUIDCap
    port = PortInfo(std::span<const std::uint8_t, 64>(bytes));
    port.set_state(PortState::down);
    pkeys.set_pkey(0, 0xFFFF);
  }

  void set_capability(std::uint32_t bit, bool on) {
    auto bytes = port.bytes();
    const auto mask = static_cast<std::uint32_t>(verbs::load_big_endian<4>(bytes, 20));
    verbs::store_big_endian<4>(bytes, 20, on ? mask | bit : mask & ~bit);
    port = PortInfo(std::span<const std::uint8_t, 64>(bytes));
  }
  void set_mtu_cap(std::uint8_t mtu) {
    auto bytes = port.bytes();
    bytes[41] = mtu;
    port = PortInfo(std::span<const std::uint8_t, 64>(bytes));
  }

  /// Nothing for what a subnet manager has to answer, and for a Set with the wrong M_Key.
  std::optional<Mad> answer(const Mad& request) {
    if (port.m_key() != 0 && request.m_key() != port.m_key()) {
      if (request.method() == MadMethod::set) return std::nullopt;
      if (SmAttribute{request.attribute()} == SmAttribute::port_info && hides_m_key) {
        Mad response = verbs::response_to(request);
        PortInfo shown = port;
        shown.set_m_key(0);
        shown.store(response);
        return response;
      }
    }
    Mad response = verbs::response_to(request);
    const bool set = request.method() == MadMethod::set;
    switch (SmAttribute{request.attribute()}) {
      case SmAttribute::node_info:
        node.store(response);
        break;
      case SmAttribute::node_description:
        response.smp_data()[0] = description;
        break;
      case SmAttribute::pkey_table:
        if (set) pkeys = PkeyTable(request.smp_data());
        pkeys.store(response);
        break;
      case SmAttribute::guid_info:
        verbs::store_big_endian<8>(response.smp_data(), 0,
                                   request.modifier() == 0 ? node.port_guid().value() : 0);
        break;
      case SmAttribute::sl_to_vl_table:
        if (set) sl_to_vl = verbs::SlToVlTable(request.smp_data());
        sl_to_vl.store(response);
        break;
      case SmAttribute::vl_arbitration_table:
        break;  // empty
      case SmAttribute::port_info: {
        if (set) response.set_status(set_port(PortInfo(request.smp_data())));
        port.store(response);
        break;
      }
      default:
        return std::nullopt;
    }
    return response;
  }

  std::uint16_t set_port(const PortInfo& wanted) {
    ++sets;
    const PortState now = port.state();
    const bool legal =
        wanted.state() == PortState::no_change ||
        (wanted.state() == PortState::armed && (now == PortState::initialize || now == PortState::armed)) ||
        (wanted.state() == PortState::active && (now == PortState::armed || now == PortState::active));
    if (!legal) return 0x1C;
    auto bytes = port.bytes();
    const auto take = [&](std::size_t offset, unsigned mask) {
      bytes[offset] = static_cast<std::uint8_t>((bytes[offset] & ~mask) | (wanted.bytes()[offset] & mask));
    };
    for (std::size_t i = 0; i < 20; ++i) take(i, 0xFF);  // M_Key, prefix, LIDs of the port and of the manager
    for (const std::size_t i : {26U, 27U, 36U, 53U}) take(i, 0xFF);  // lease, MTU and SM SL, thresholds
    take(33, 0x0F);                                                  // LinkDownDefaultState
    take(34, supports_lmc ? 0xC7 : 0xC0);                            // protection, LMC
    take(43, 0xF0);                                                  // OperationalVLs
    take(51, 0x1F);                                                  // SubnetTimeOut
    port = PortInfo(std::span<const std::uint8_t, 64>(bytes));
    if (wanted.state() != PortState::no_change) port.set_state(wanted.state());
    if (wanted.client_reregister()) ++reregistrations;
    return 0;
  }
};

/// Two ends, one cable.
class Cable {
 public:
  struct Side {
    Sma sma;
    std::unique_ptr<SubnetManager> manager;
    std::set<std::uint32_t> waiting;  ///< TIDs whose answer or timeout is still to come
    std::vector<std::string> notes;
    unsigned life = 0;  ///< of the manager; what is under way for an earlier one is lost
  };

  struct Conditions {
    double loss = 0, duplication = 0;
    Duration shortest = 20us, longest = 200us;  ///< one way
  };

  Cable(Sma one, Sma other, std::uint64_t seed)
      : sides{Side{std::move(one), nullptr, {}, {}}, Side{std::move(other), nullptr, {}, {}}}, random(seed) {}

  // --- what happens to it
  void start(int side, Settings settings = {}) {
    Side& s = sides[side];
    settings.port = s.sma.node.local_port();
    settings.port_guid = s.sma.node.port_guid();
    if (settings.host == Guid{}) settings.host = s.sma.node.node_guid();
    settings.first_tid = static_cast<std::uint32_t>(random());
    s.manager = std::make_unique<SubnetManager>(settings);
    ++s.life;
    s.sma.set_capability(PortInfo::kCapabilityIsSm, true);
    give(side, Start{});
  }
  /// As after kill -9: the adapter goes on, its IsSM bit goes.
  void kill(int side) {
    sides[side].manager.reset();
    sides[side].waiting.clear();
    ++sides[side].life;
    sides[side].sma.set_capability(PortInfo::kCapabilityIsSm, false);
  }
  void plug(bool events = true) {
    plugged = true;
    for (auto& side : sides) side.sma.port.set_state(PortState::initialize);
    if (events)
      for (int side : {0, 1}) later(50us, [this, side] { give(side, PortEvent{true}); });
  }
  void unplug(bool events = true) {
    plugged = false;
    for (auto& side : sides) side.sma.port.set_state(PortState::down);
    if (events)
      for (int side : {0, 1}) later(50us, [this, side] { give(side, PortEvent{true}); });
  }
  void give(int side, const Event& event) {
    Side& s = sides[side];
    if (!s.manager) return;
    for (Action& action : s.manager->handle(now, event)) perform(side, std::move(action));
    if (s.manager->next_timer()) {
      const TimePoint due = *s.manager->next_timer();
      if (due != timers[side]) {
        timers[side] = due;
        at(std::max(due, now), [this, side, due, life = s.life] {
          if (sides[side].life == life && timers[side] == due) {
            timers[side].reset();
            give(side, TimerExpired{});
          }
        });
      }
    } else {
      timers[side].reset();
    }
    if (check) check();
  }

  // --- time
  void later(Duration delay, std::function<void()> what) { at(now + delay, std::move(what)); }
  void at(TimePoint when, std::function<void()> what) { queue.push({when, next_order++, std::move(what)}); }
  bool step() {
    if (queue.empty()) return false;
    auto entry = queue.top();
    queue.pop();
    now = entry.when;
    entry.what();
    return true;
  }
  void run(Duration duration) {
    const TimePoint end = now + duration;
    while (!queue.empty() && queue.top().when <= end) step();
    now = end;
  }
  /// Time until `condition` holds; nothing if it does not within `limit`.
  std::optional<Duration> run_until(const std::function<bool()>& condition, Duration limit) {
    const TimePoint begin = now;
    while (!condition()) {
      if (queue.empty() || queue.top().when > begin + limit) return std::nullopt;
      step();
    }
    return now - begin;
  }

  // --- what is asked of it
  [[nodiscard]] const View& view(int side) const { return sides[side].manager->view(); }
  [[nodiscard]] bool ports_active() const {
    return sides[0].sma.port.state() == PortState::active && sides[1].sma.port.state() == PortState::active;
  }
  /// Ports Active, one master, and every manager knows it.
  [[nodiscard]] bool converged() const {
    int masters = 0;
    for (const auto& side : sides) {
      if (!side.manager) continue;
      const View& v = side.manager->view();
      if (v.stage != Stage::settled || !v.active()) return false;
      if (v.own_lid() != side.sma.port.lid()) return false;
      if (v.state == SmState::master) {
        ++masters;
        if (side.sma.port.sm_lid() != side.sma.port.lid()) return false;
      }
    }
    return ports_active() && masters == 1 && sides[0].sma.port.sm_lid() == sides[1].sma.port.sm_lid();
  }
  [[nodiscard]] int master() const {
    for (int side : {0, 1})
      if (sides[side].manager && view(side).state == SmState::master) return side;
    return -1;
  }

  std::array<Side, 2> sides;
  std::mt19937_64 random;
  Conditions conditions;
  bool plugged = false;
  TimePoint now{};
  std::uint64_t requests_by_side[2] = {0, 0};
  std::function<void()> check;
  /// How long a manager takes to answer; an adapter answers at once.
  std::function<Duration(int side)> manager_delay;
  std::array<bool, 2> managers_deaf{};

 private:
  struct Entry {
    TimePoint when;
    std::uint64_t order;
    std::function<void()> what;
    bool operator<(const Entry& other) const {
      return std::tie(when, order) > std::tie(other.when, other.order);
    }
  };

  /// The port's adapter, which raises an event when what it is told changes something.
  std::optional<Mad> ask_adapter(int side, const Mad& request) {
    Sma& sma = sides[side].sma;
    const PortInfo before = sma.port;
    auto response = sma.answer(request);
    if (sma.port != before) later(30us, [this, side] { give(side, PortEvent{}); });
    return response;
  }
  bool chance(double probability) { return std::uniform_real_distribution<>(0, 1)(random) < probability; }
  Duration travel() {
    return Duration(std::uniform_int_distribution<Duration::rep>(conditions.shortest.count(),
                                                                 conditions.longest.count())(random));
  }
  /// Over the cable: maybe not at all, maybe twice.
  void carry(const std::function<void()>& what) {
    const int copies = chance(conditions.loss) ? 0 : chance(conditions.duplication) ? 2 : 1;
    for (int i = 0; i < copies; ++i)
      later(travel(), [this, what] {
        if (plugged) what();
      });
  }

  void perform(int side, Action action) {
    if (const auto* note = std::get_if<Notice>(&action)) {
      sides[side].notes.push_back(note->text);
      return;
    }
    const auto& send = std::get<SendMad>(action);
    const Mad mad = send.mad;
    if (mad.is_response()) {
      carry([this, side, mad] { answer(1 - side, mad); });
      return;
    }
    ++requests_by_side[side];
    const auto tid = static_cast<std::uint32_t>(mad.tid());
    sides[side].waiting.insert(tid);
    later(send.timeout, [this, side, tid, life = sides[side].life] {
      if (sides[side].life == life && sides[side].waiting.erase(tid) != 0) give(side, SendTimedOut{tid});
    });
    if (mad.hop_count() == 0) {
      const auto response = ask_adapter(side, mad);
      if (response) later(10us, [this, side, r = *response] { answer(side, r); });
      return;
    }
    carry([this, side, mad] {
      Side& other = sides[1 - side];
      if (const auto response = ask_adapter(1 - side, mad)) {
        carry([this, side, r = *response] { answer(side, r); });
      } else if (other.manager && !managers_deaf[1 - side]) {
        const auto hear = [this, side, mad, life = other.life] {
          if (sides[1 - side].life == life)
            give(1 - side, MadReceived{mad, {.lid = verbs::kPermissiveLid, .qpn = Qpn{0}}});
        };
        if (manager_delay)
          later(manager_delay(1 - side), hear);
        else
          hear();
      }
    });
  }

  /// The kernel of `side` gets an answer: only what is waited for goes to the program.
  void answer(int side, const Mad& response) {
    if (sides[side].waiting.erase(static_cast<std::uint32_t>(response.tid())) != 0)
      give(side, MadReceived{response, {.lid = verbs::kPermissiveLid, .qpn = Qpn{0}}});
  }

  std::priority_queue<Entry> queue;
  std::uint64_t next_order = 0;
  std::array<std::optional<TimePoint>, 2> timers;
};

}  // namespace fabric::daemon::subnet
