// The subnet manager core against a neighbour that says anything, answers wrongly or not at all, in any
// order, on a simulated clock. What must hold: no event is answered with more than a handful of datagrams,
// timers advance, and once the nonsense is over and another adapter is plugged in, its cable becomes Active.
//
// Subjects: fabricd/subnet/subnet_manager.cpp verbs/mad.cpp
#include <map>

#include "tests/fuzz/input.hpp"
#include "tests/unit/subnet_simulation.hpp"

using namespace fabric;
using namespace fabric::daemon::subnet;
using fabric::fuzz::Input;

namespace {

/// All tables of both ends, each of as many blocks as are read.
constexpr std::size_t kMostActions = 48;
constexpr std::size_t kMostWaiting = 256;

class Script {
 public:
  explicit Script(Input& in) : in_(in), manager_(settings()) {
    own_.port.set_state(PortState::initialize);
    peer_.port.set_state(PortState::initialize);
    give(Start{});
  }

  void step() {
    switch (in_.below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return answer(in_.below(8), true);
      case 4:
      case 5:
        return answer_all();
      case 6:
        return time_out(in_.below(8));
      case 7:
        return pass(std::chrono::milliseconds(in_.byte()));
      case 8:
        return pass(std::chrono::seconds(in_.below(16)));
      case 9: {
        const PortState state{static_cast<std::uint8_t>(1 + in_.below(4))};
        own_.port.set_state(state);
        if (in_.flag()) peer_.port.set_state(state);
        return give(PortEvent{in_.flag()});
      }
      case 10:
        return ask_sm_info();
      case 11:
        return datagram();
      case 12: {
        Settings changed = settings();
        changed.base_lids[Guid{1}] = Lid{in_.number<std::uint16_t>()};
        changed.base_lids[Guid{2}] = Lid{in_.number<std::uint16_t>()};
        changed.lmc = static_cast<std::uint8_t>(in_.below(3));
        return give(SettingsChanged{changed});
      }
      case 13:
        return give(NeighbourKnown{Guid{in_.below(4)}});
      case 14:
        peer_.set_capability(PortInfo::kCapabilityIsSm, in_.flag());
        if (in_.flag()) peer_.set_mtu_cap(static_cast<std::uint8_t>(in_.below(16)));
        return;
      case 15:
        give(Stop{});
        return give(Start{});
    }
  }

  /// Another, well-behaved adapter without a subnet manager is plugged in.
  void recover() {
    own_ = Sma(Guid{1}, Guid{11}, 1);
    peer_ = Sma(Guid{2}, Guid{22}, 2);
    waiting_.clear();
    give(SettingsChanged{settings()});
    own_.port.set_state(PortState::down);
    give(PortEvent{true});
    answer_all();
    own_.port.set_state(PortState::initialize);
    peer_.port.set_state(PortState::initialize);
    give(PortEvent{true});
    for (int i = 0; i < 300 && !good(); ++i) {
      answer_all();
      pass(10ms);
    }
    FUZZ_REQUIRE(good());
  }

 private:
  [[nodiscard]] static Settings settings() {
    Settings settings;
    settings.host = Guid{1};
    settings.port_guid = Guid{11};
    return settings;
  }

  [[nodiscard]] bool good() const {
    const View& view = manager_.view();
    return view.stage == Stage::settled && view.state == SmState::master && view.active() &&
           own_.port.state() == PortState::active && peer_.port.state() == PortState::active &&
           own_.port.lid() == view.own_lid() && peer_.port.lid() == view.peer_lid() &&
           own_.port.lid() != peer_.port.lid() && own_.port.sm_lid() == own_.port.lid() &&
           peer_.port.sm_lid() == own_.port.lid() && own_.port.gid_prefix() == peer_.port.gid_prefix();
  }

  void give(const Event& event) {
    const auto actions = manager_.handle(now_, event);
    FUZZ_REQUIRE(actions.size() <= kMostActions);
    for (const Action& action : actions) {
      const auto* send = std::get_if<SendMad>(&action);
      if (send == nullptr) continue;
      FUZZ_REQUIRE(send->mad.is_response() == (send->timeout == 0ms));
      if (send->mad.is_response()) continue;
      FUZZ_REQUIRE(waiting_.emplace(static_cast<std::uint32_t>(send->mad.tid()), send->mad).second);
    }
    // What the daemon shows at any time.
    const View& view = manager_.view();
    (void)view.active();
    (void)view.to_oneself();
    (void)to_string(view.stage);
    if (view.active()) FUZZ_REQUIRE(view.own_lid() != kNoLid && view.peer_lid() != kNoLid);
    // umad keeps what is sent until it is answered or times out; so does this script, but for floods.
    while (waiting_.size() > kMostWaiting) time_out(0);
  }

  void pass(Duration duration) {
    const TimePoint until = now_ + duration;
    while (manager_.next_timer() && *manager_.next_timer() <= until) {
      now_ = std::max(now_, *manager_.next_timer());
      give(TimerExpired{});
      FUZZ_REQUIRE(!manager_.next_timer() || *manager_.next_timer() > now_);
    }
    now_ = until;
  }

  void time_out(std::size_t which) {
    if (waiting_.empty()) return;
    const auto entry = std::next(waiting_.begin(), static_cast<std::ptrdiff_t>(which % waiting_.size()));
    const std::uint32_t tid = entry->first;
    waiting_.erase(entry);
    give(SendTimedOut{tid});
  }

  void answer(std::size_t which, bool mutate) {
    if (waiting_.empty()) return;
    const auto entry = std::next(waiting_.begin(), static_cast<std::ptrdiff_t>(which % waiting_.size()));
    const Mad request = entry->second;
    waiting_.erase(entry);
    Sma& sma = request.hop_count() == 0 ? own_ : peer_;
    Mad response = sma.answer(request).value_or(verbs::response_to(request));
    if (mutate) {
      in_.mutate(response.smp_data());
      if (in_.below(8) == 7) in_.mutate(response.bytes());
      response.set_tid(request.tid());
    }
    give(MadReceived{response, {.lid = verbs::kPermissiveLid, .qpn = Qpn{0}}});
  }

  void answer_all() {
    // Answers lead to the next requests; a manager that never comes to an end is one that loops.
    for (int i = 0; i < 200 && !waiting_.empty(); ++i) answer(0, false);
    FUZZ_REQUIRE(waiting_.empty() || waiting_.size() > 16);
  }

  void ask_sm_info() {
    SmInfo info;
    info.set_guid(Guid{in_.below(32)});
    info.set_sm_key(in_.below(2));
    info.set_priority_and_state(static_cast<std::uint8_t>(in_.below(16)),
                                SmState{static_cast<std::uint8_t>(in_.below(5))});
    Mad request = verbs::directed_route_request(in_.flag() ? MadMethod::set : MadMethod::get,
                                                SmAttribute::sm_info, in_.below(8), 2);
    info.store(request);
    give(MadReceived{request, {.lid = verbs::kPermissiveLid, .qpn = Qpn{0}}});
  }

  void datagram() {
    Mad mad(in_.flag() ? verbs::MadClass::subnet_lid_routed : verbs::MadClass::subnet_directed_route,
            in_.flag() ? MadMethod::trap : MadMethod::get_response, in_.byte(), in_.byte());
    in_.mutate(mad.bytes());
    if (in_.flag()) in_.fill(mad.smp_data());
    if (in_.flag() && !waiting_.empty()) mad.set_tid(waiting_.begin()->first);
    give(MadReceived{mad, {.lid = Lid{in_.number<std::uint16_t>()}, .qpn = Qpn{in_.byte()}}});
  }

  Input& in_;
  Sma own_{Guid{1}, Guid{11}, 1}, peer_{Guid{2}, Guid{22}, 2};
  SubnetManager manager_;
  TimePoint now_{};
  std::map<std::uint32_t, Mad> waiting_;  ///< requests by TID
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  Script script(in);
  for (int i = 0; i < 400 && !in.empty(); ++i) script.step();
  script.recover();
  return 0;
}
