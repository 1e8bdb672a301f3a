// The subnet manager of one cable.
//
// A cable between two adapters is a subnet of two ports. Nothing needs routing tables; what is left of subnet
// management is small enough to be done as a straight line, in rounds whose requests travel together:
//
//   down         Get(PortInfo) of the own port until it has a link                             1 request
//   discovering  Get(NodeInfo) of both ends, then Get(PortInfo) of the other                   3
//   electing     Get(SMInfo) of the other end, if it claims to have a subnet manager           1
//   configuring  Set(PortInfo) of both: LIDs, prefix, LMC, SM LID, MTU, VLs, M_Key             2
//   arming       Set(PortInfo) of both: ARMED                                                  2
//   activating   Set(PortInfo) of both: ACTIVE                                                 2
//   settled      watching
//
// 11 requests; what only the administrator and people want (descriptions, P_Key tables) is read after that.
// A loser of the election stops after five and waits for the master.
//
// The two managers. SMInfo decides: the higher priority, then the lower port GUID. The loser is STANDBY. It
// polls the master as the specification says, but does not take a late answer for a death: a master that dies
// takes its IsSM bit with it (the kernel clears it when the last process lets go of issmN), and the bit is
// read from the other end's adapter, which answers however busy the processor is. So takeover is fast (one
// poll) and yet there is no false one under load; a master that hangs with the bit set is given kHungMaster.
// Control packets (HANDOVER, ACKNOWLEDGE, DISABLE, STANDBY, DISCOVER) work in both directions, so that any
// other subnet manager can be at the other end.
//
// Events instead of sweeps. The adapter's port events begin everything; PortInfo polling finds what events do
// not tell (other end's reset, adapters that are silent about Initialize). A lost datagram is asked for again
// after a time that doubles; an answer to an earlier attempt is not waited for, the requests are idempotent.
//
// Tables. P_Keys get 0xFFFF where it is missing, and service levels a lane that the cable has; other tables
// (GUIDs, VL arbitration) are read for the administrator, and left as they are: with one service level in use
// there is nothing to arbitrate. They are read when the cable is Active, which waits for none of it.
//
// M_Key. None by default. With one, whoever does not know it may look at the ports and not set them; a key
// that is found on a port and can be read is used, and replaced by the own one.
//
// LIDs. Agreed ones where both hosts are known; until then what the ports carry already, if it is usable (a
// restarted daemon changes nothing), else provisional ones from a range above the agreed ones.
//
// Specification: InfiniBand Architecture, volume 1: 14.2.5 (attributes), 14.4 (states of a subnet manager,
// table of control packets), 7.2.7 (link states). Departures: a STANDBY does not take over by missed polls
// alone, as said above; a MASTER that finds another MASTER that wins steps down by itself instead of waiting
// for its HANDOVER; the SM_Key is 1, without which OpenSM, whose default that is, does not take part in an
// election.
//
// Threading: none. A value; see style of handle() and next_timer().
#include "fabricd/subnet/subnet_manager.hpp"

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <utility>

namespace fabric::daemon::subnet {

using verbs::Mad;
using verbs::MadAddress;
using verbs::MadMethod;
using verbs::NodeInfo;
using verbs::PkeyTable;
using verbs::PortInfo;
using verbs::PortState;
using verbs::SlToVlTable;
using verbs::SmAttribute;
using verbs::SmControl;
using verbs::SmInfo;
using verbs::SmState;
using namespace std::chrono_literals;

namespace {

/// First wait for an answer; doubles up to the second. The other end's adapter answers in microseconds, but a
/// software one shares a busy machine.
constexpr auto kFirstTimeout = 20ms;
constexpr auto kLongestTimeout = 160ms;
constexpr unsigned kAttempts = 5;
/// Polls of the own port without a link: the fallback where no event tells that a cable was plugged in.
constexpr auto kDownPoll = 50ms;
constexpr auto kMasterPoll = 100ms;
/// A standby's polls are what takeover takes.
constexpr auto kStandbyPoll = 40ms;
/// A standby that waits for the master to activate the ports looks more often, for so long.
constexpr auto kImpatientPoll = 10ms;
constexpr auto kImpatience = 1s;
/// Every so many polls a standby asks its master, and a master a second manager, for SMInfo.
constexpr unsigned kPollsPerSmInfo = 5;
/// A port that has changed what it was given is given it again at once, but not more often: there may be
/// adapters that cannot keep it.
constexpr auto kInsist = 1s;
constexpr auto kBackoff = 100ms;
constexpr auto kRefusedPoll = 1s;
/// A master whose adapter still says IsSM, but that does not answer.
constexpr auto kHungMaster = 5s;
constexpr auto kHandoverWait = 1s;
/// 4.096 us * 2^18 = 1 s, OpenSM's value.
constexpr std::uint8_t kSubnetTimeout = 18;
/// Traps about a bad cable come after so many errors; OpenSM's value.
constexpr std::uint8_t kErrorThreshold = 8;
/// Everybody may look at a port, and whoever has the M_Key may set it; a minute after a manager was refused
/// the key can be read, so that one whose key is lost does not lock the cable for ever.
constexpr std::uint8_t kProtectSets = 1;
constexpr auto kMkeyLease = 60s;
constexpr std::uint16_t kTrapLocalChange = 144;
constexpr std::uint32_t kCapabilityClientReregister = 1U << 25;
constexpr std::uint16_t kDefaultPkey = 0xFFFF;
/// Entries of a block of VL arbitration.
constexpr unsigned kVlArbitrationBlock = 32;
constexpr std::uint16_t kFullMember = 0x8000;
/// Blocks of a table that are read: twice what adapters have. A port may claim thousands, at no cost for
/// itself.
constexpr std::size_t kMostBlocks = 8;

constexpr std::uint64_t kSmKey = 1;

constexpr std::uint16_t kProvisionalFirst = 0xB000;
constexpr std::uint16_t kProvisionalCount = 0x1000;

/// Finalizer of splitmix64: every bit of the input moves half of the output.
constexpr std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9U;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBU;
  return x ^ x >> 31;
}

/// The same for (a, b) and (b, a).
constexpr std::uint64_t hash_of_ends(Guid one, Guid other) {
  const std::uint64_t low = std::min(one, other).value(), high = std::max(one, other).value();
  return mix(mix(low + 0x9E3779B97F4A7C15U) + high);
}

/// Of the code in PortInfo.
unsigned data_lanes(std::uint8_t operational_vls) {
  constexpr std::array<unsigned, 6> kLanes{1, 1, 2, 4, 8, 15};
  return operational_vls < kLanes.size() ? kLanes[operational_vls] : kLanes.back();
}

bool overlap(Lid one, Lid other, std::uint8_t lmc) {
  return one.value() >> lmc == other.value() >> lmc;
}

bool usable(Lid lid, std::uint8_t lmc) {
  return lid != kNoLid && lid.value() % (1U << lmc) == 0 && lid <= kMaxUnicastLid;
}

}  // namespace

std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::stopped:
      return "stopped";
    case Stage::down:
      return "down";
    case Stage::discovering:
      return "discovering";
    case Stage::electing:
      return "electing";
    case Stage::configuring:
      return "configuring";
    case Stage::arming:
      return "arming";
    case Stage::activating:
      return "activating";
    case Stage::settled:
      return "settled";
    case Stage::backing_off:
      return "backing-off";
    case Stage::refused:
      return "refused";
  }
  return "unknown";
}

std::uint64_t cable_prefix(Guid one, Guid other) {
  return 0xFDULL << 56 | hash_of_ends(one, other) >> 8;
}

std::pair<Lid, Lid> provisional_lids(Guid one, Guid other, std::uint8_t lmc) {
  const std::uint32_t block = 1U << lmc;
  const std::uint32_t slots = kProvisionalCount / (2 * block);
  const auto slot = static_cast<std::uint32_t>(hash_of_ends(one, other) % slots);
  const Lid low{static_cast<std::uint16_t>(kProvisionalFirst + slot * 2 * block)};
  const Lid high{static_cast<std::uint16_t>(low.value() + block)};
  return one <= other ? std::pair{low, high} : std::pair{high, low};
}

bool View::active() const {
  return own.port && peer.port && own.port->state() == PortState::active &&
         peer.port->state() == PortState::active && own_lid() != kNoLid && peer_lid() != kNoLid;
}

std::string View::slow_link() const {
  if (!active()) return {};
  const verbs::LinkSpeed present = own.port->link_speed(),
                         possible = own.port->fastest_link_speed(*peer.port);
  if (present.lanes >= possible.lanes && present.lane_rate >= possible.lane_rate) return {};
  return "the link runs at " + lanes_text(present) + " " + lane_rate_text(present) + ", and both ends can " +
         lanes_text(possible) + " " + lane_rate_text(possible);
}

bool View::to_oneself() const {
  return own.node && peer.node && own.node->node_guid() == peer.node->node_guid();
}

SubnetManager::SubnetManager(Settings settings)
    : settings_(std::move(settings)), next_tid_(settings_.first_tid) {
  view_.priority = settings_.priority;
}

std::vector<Action> SubnetManager::handle(TimePoint now, const Event& event) {
  now_ = now;
  std::visit([this](const auto& e) { on(e); }, event);
  advance();
  return std::exchange(actions_, {});
}

std::optional<TimePoint> SubnetManager::next_timer() const {
  switch (view_.stage) {
    case Stage::down:
    case Stage::settled:
    case Stage::backing_off:
    case Stage::refused:
      return poll_at_;
    case Stage::stopped:
    case Stage::discovering:  // these wait for answers, and the answers' timeouts are somebody else's timer
    case Stage::electing:
    case Stage::configuring:
    case Stage::arming:
    case Stage::activating:
      return std::nullopt;
  }
  return std::nullopt;
}

// --- events ------------------------------------------------------------------------------------------------

void SubnetManager::on(const Start&) {
  if (view_.stage == Stage::stopped) go_down();
}

void SubnetManager::on(const Stop&) {
  requests_.clear();
  become(SmState::not_active);
  enter(Stage::stopped);
}

void SubnetManager::on(const PortEvent& event) {
  switch (view_.stage) {
    case Stage::stopped:
      return;
    case Stage::down:
    case Stage::refused:
    case Stage::backing_off:
      return go_down();
    case Stage::settled:
      return event.error ? go_down() : poll();
    case Stage::discovering:
    case Stage::electing:
    case Stage::configuring:
    case Stage::arming:
    case Stage::activating:
      // Other events in these stages are mostly the echo of what this sweep does.
      if (event.error) go_down();
      return;
  }
}

void SubnetManager::on(const MadReceived& event) {
  const Mad& mad = event.mad;
  if (!mad.is_subnet_management() || view_.stage == Stage::stopped) {
    ++view_.counters.ignored;
    return;
  }
  if (mad.method() == MadMethod::get_response) {
    const auto found = requests_.find(static_cast<std::uint32_t>(mad.tid()));
    if (found == requests_.end() || mad.attribute() != static_cast<std::uint16_t>(found->second.attribute)) {
      ++view_.counters.ignored;
      return;
    }
    const Request request = found->second;
    requests_.erase(found);
    ++view_.counters.responses;
    if (request.target == Target::peer) view_.peer_seen = now_;
    return on_response(request, mad);
  }
  const auto attribute = SmAttribute{mad.attribute()};
  if (attribute == SmAttribute::sm_info && (mad.method() == MadMethod::get || mad.method() == MadMethod::set))
    return answer_sm_info(mad, event.source);
  if (attribute == SmAttribute::notice && mad.method() == MadMethod::trap) return on_trap(mad, event.source);
  ++view_.counters.ignored;
}

void SubnetManager::on(const SendTimedOut& event) {
  const auto found = requests_.find(event.tid);
  if (found == requests_.end()) return;
  Request request = found->second;
  requests_.erase(found);
  ++view_.counters.timeouts;
  if (++request.attempt < kAttempts) return ask(std::move(request));
  on_unanswered(request);
}

void SubnetManager::on(const SettingsChanged& event) {
  settings_ = event.settings;
  view_.priority = settings_.priority;
  follow_plan();
}

void SubnetManager::on(const NeighbourKnown& event) {
  if (!view_.peer.node) return;
  neighbour_host_ = event.host;
  follow_plan();
}

void SubnetManager::on(const TimerExpired&) {
  if (now_ < poll_at_) return;
  switch (view_.stage) {
    case Stage::down:
      poll_at_ = now_ + poll_interval();
      if (!asking(Target::own, SmAttribute::port_info))
        ask({.attribute = SmAttribute::port_info, .modifier = settings_.port, .blocking = true});
      return;
    case Stage::settled:
      return poll();
    case Stage::backing_off:
      return sweep(view_.state != SmState::master);
    case Stage::refused:
      return go_down();
    case Stage::stopped:
    case Stage::discovering:
    case Stage::electing:
    case Stage::configuring:
    case Stage::arming:
    case Stage::activating:
      return;
  }
}

// --- what the other SM asks --------------------------------------------------------------------------------

void SubnetManager::answer_sm_info(const Mad& request, const MadAddress& source) {
  const std::size_t place = actions_.size();
  std::uint16_t status = 0;
  if (request.method() == MadMethod::set && !obey(SmControl{request.modifier()}, SmInfo(request.smp_data())))
    status = static_cast<std::uint16_t>(verbs::MadStatus::invalid_value);
  Mad response = verbs::response_to(request);
  response.set_status(status);
  own_sm_info().store(response);
  // Before whatever obeying has led to: the other SM takes the answer before the acknowledgement.
  actions_.insert(actions_.begin() + static_cast<std::ptrdiff_t>(place), SendMad{response, source});
}

bool SubnetManager::obey(SmControl control, const SmInfo& sender) {
  switch (control) {
    case SmControl::handover:
      if (view_.state == SmState::not_active) return false;
      if (view_.state != SmState::master) {
        ++view_.counters.handovers;
        note(Notice::Level::info, "subnet manager " + to_string(sender.guid()) + " hands over");
        become(SmState::master);
      }
      sweep(false);
      ask({.target = Target::peer,
           .method = MadMethod::set,
           .attribute = SmAttribute::sm_info,
           .modifier = static_cast<std::uint32_t>(SmControl::acknowledge),
           .payload = own_sm_info()});
      return true;
    case SmControl::acknowledge:
      if (view_.state != SmState::master || now_ > handover_until_) return false;
      become(SmState::standby);
      settle();
      return true;
    case SmControl::disable:
      if (view_.state != SmState::standby) return false;
      become(SmState::not_active);
      settle();
      return true;
    case SmControl::standby:
      if (view_.state != SmState::not_active) return false;
      become(SmState::standby);
      settle();
      return true;
    case SmControl::discover:
      if (view_.state != SmState::standby) return false;
      sweep(true);
      return true;
  }
  return false;
}

void SubnetManager::on_trap(const Mad& trap, const MadAddress& source) {
  ++view_.counters.traps;
  if (view_.state != SmState::master) return;
  Mad repress = verbs::response_to(trap);
  repress.set_m_key(settings_.m_key);
  actions_.emplace_back(SendMad{repress, source});
  if (view_.stage != Stage::settled) return;
  const verbs::NoticeAttribute notice(trap.smp_data());
  if (notice.is_generic() && notice.trap() == kTrapLocalChange)
    for (const Target target : {Target::own, Target::peer})
      if (overlap(notice.issuer(), end(target).port->lid(), end(target).port->lmc()))
        ask({.target = target, .attribute = SmAttribute::node_description});
  poll();
}

// --- answers -----------------------------------------------------------------------------------------------

void SubnetManager::on_response(const Request& request, const Mad& response) {
  if (response.status() != 0) {
    ++view_.counters.errors;
    if (request.blocking && request.attribute != SmAttribute::sm_info)
      back_off(std::string(request.target == Target::own ? "the own port" : "the other end") +
               " answers attribute " + std::to_string(static_cast<unsigned>(request.attribute)) +
               " with status " + std::to_string(response.status()));
    return;
  }
  const auto data = response.smp_data();
  End& from = end(request.target);
  switch (request.attribute) {
    case SmAttribute::node_info:
      from.node = NodeInfo(data);
      if (request.target == Target::peer && from.node->port_guid() != neighbour_port_) {
        neighbour_port_ = from.node->port_guid();
        neighbour_host_ = Guid{};
      }
      if (request.target == Target::peer)
        ask({.target = Target::peer,
             .attribute = SmAttribute::port_info,
             .modifier = from.node->local_port(),
             .blocking = true});
      return;
    case SmAttribute::port_info:
      return on_port_info(request, PortInfo(data));
    case SmAttribute::node_description:
      from.description = verbs::node_description(data);
      return;
    case SmAttribute::pkey_table:
      return on_pkey_table(request, PkeyTable(data));
    case SmAttribute::guid_info:
      from.guids[static_cast<std::uint16_t>(request.modifier)] = verbs::GuidInfo(data);
      return;
    case SmAttribute::sl_to_vl_table:
      return on_sl_to_vl(request.target, SlToVlTable(data));
    case SmAttribute::vl_arbitration_table:
      from.vl_arbitration[static_cast<std::uint16_t>(request.modifier >> 16)] = verbs::SmpAttribute(data);
      return;
    case SmAttribute::sm_info:
      return on_peer_sm_info(request, SmInfo(data));
    case SmAttribute::notice:
      return;
  }
}

void SubnetManager::on_port_info(const Request& request, const PortInfo& info) {
  End& from = end(request.target);
  const auto before = std::exchange(from.port, info);
  if (request.method == MadMethod::set) accepted_[index(request.target)] = info.given();

  if (request.target == Target::own && info.state() == PortState::down) {
    if (view_.stage != Stage::down) go_down();
    return;
  }
  if (view_.stage == Stage::down) return sweep(true);
  if (view_.stage != Stage::settled || request.blocking) return;

  if (request.target == Target::own && info.state() == PortState::initialize && before &&
      (before->state() == PortState::armed || before->state() == PortState::active))
    return go_down();  // the link was lost and is back, and nobody said so
  switch (view_.state) {
    case SmState::master:
      if (info.state() != PortState::active) return sweep(false);
      if (info.given() != accepted_[index(request.target)] && now_ >= insist_at_) {
        insist_at_ = now_ + kInsist;
        return sweep(false);
      }
      if (request.target == Target::peer && info.is_sm() && !(before && before->is_sm()))
        ask({.target = Target::peer, .attribute = SmAttribute::sm_info});
      return;
    case SmState::standby:
      if (request.target == Target::peer && !info.is_sm()) {
        note(Notice::Level::info, "the master at the other end is gone");
        sweep(true);
      }
      return;
    case SmState::discovering:
    case SmState::not_active:
      return;
  }
}

void SubnetManager::on_peer_sm_info(const Request& request, const SmInfo& info) {
  view_.peer_sm = info;
  if (info.state() == SmState::master) master_seen_ = now_;
  if (request.blocking || view_.stage != Stage::settled) return;
  if (request.method == MadMethod::set) return;  // the answer to HANDOVER or ACKNOWLEDGE
  switch (view_.state) {
    case SmState::master:
      if (info.state() == SmState::standby && peer_wins() && now_ >= handover_until_) {
        handover_until_ = now_ + kHandoverWait;
        ++view_.counters.handovers;
        note(Notice::Level::info, "handing over to subnet manager " + to_string(info.guid()));
        ask({.target = Target::peer,
             .method = MadMethod::set,
             .attribute = SmAttribute::sm_info,
             .modifier = static_cast<std::uint32_t>(SmControl::handover),
             .payload = own_sm_info()});
      } else if (info.state() == SmState::master && peer_wins()) {
        become(SmState::standby);
        settle();
      }
      return;
    case SmState::standby:
      if (info.state() == SmState::standby || info.state() == SmState::not_active ||
          (info.state() == SmState::discovering && now_ - master_seen_ > kImpatience))
        sweep(true);
      return;
    case SmState::discovering:
    case SmState::not_active:
      return;
  }
}

void SubnetManager::on_pkey_table(const Request& request, const PkeyTable& table) {
  auto& tables = end(request.target).pkeys;
  tables[static_cast<std::uint16_t>(request.modifier)] = table;
  if (view_.state != SmState::master || asking(request.target, SmAttribute::pkey_table)) return;
  // All blocks are known. The default partition must be in one of them.
  std::optional<std::pair<std::uint16_t, std::size_t>> free;  // block, and index there
  for (const auto& [block, pkeys] : tables)
    for (std::size_t i = 0; i < PkeyTable::kBlock; ++i) {
      if ((pkeys.pkey(i) | kFullMember) == kDefaultPkey) return;
      if ((pkeys.pkey(i) & ~kFullMember) == 0 && !free) free = {block, i};
    }
  const auto [block, i] = free.value_or(std::pair(std::uint16_t{0}, std::size_t{0}));
  PkeyTable repaired = tables[block];
  repaired.set_pkey(i, kDefaultPkey);
  ask({.target = request.target,
       .method = MadMethod::set,
       .attribute = SmAttribute::pkey_table,
       .modifier = block,
       .payload = repaired});
}

void SubnetManager::on_sl_to_vl(Target target, const SlToVlTable& table) {
  end(target).sl_to_vl = table;
  if (view_.state != SmState::master) return;
  // A service level on a lane that the cable does not have is dropped by the adapter, without a word.
  const unsigned lanes = data_lanes(end(target).port->operational_vls());
  SlToVlTable repaired = table;
  for (std::size_t sl = 0; sl < SlToVlTable::kServiceLevels; ++sl)
    if (table.vl(sl) >= lanes) repaired.set_vl(sl, static_cast<std::uint8_t>(sl % lanes));
  if (repaired == table) return;
  ask({.target = target,
       .method = MadMethod::set,
       .attribute = SmAttribute::sl_to_vl_table,
       .payload = repaired});
}

void SubnetManager::on_unanswered(const Request& request) {
  if (request.blocking) {
    // A manager that claims to be there and does not answer is taken for none.
    if (request.attribute == SmAttribute::sm_info) return;
    std::string reason = request.target == Target::own ? "the own port" : "the other end";
    reason += " does not answer subnet management";
    if (request.method == MadMethod::set) reason += ", and may be protected by another manager's M_Key";
    return back_off(std::move(reason));
  }
  const bool adapter_answers = now_ - view_.peer_seen < kImpatience;
  if (view_.stage == Stage::settled && view_.state == SmState::standby &&
      request.attribute == SmAttribute::sm_info && adapter_answers && now_ - master_seen_ > kHungMaster) {
    note(Notice::Level::warning, "the master at the other end does not answer any more");
    sweep(true);
  }
}

// --- the sweep ---------------------------------------------------------------------------------------------

void SubnetManager::enter(Stage stage, std::string reason) {
  view_.stage = stage;
  // What went wrong stays to be read until it is over.
  if (!reason.empty() || stage == Stage::settled || stage == Stage::down) view_.reason = std::move(reason);
  stage_since_ = now_;
  poll_at_ = now_ + poll_interval();
}

void SubnetManager::become(SmState state) {
  if (view_.state == state) return;
  // A new master knows nothing of what clients had told the old one.
  if (state == SmState::master) reregister_ = true;
  // It looks at the ports' tables itself, and repairs them.
  if (state == SmState::master)
    for (End* end : {&view_.own, &view_.peer}) {
      end->pkeys.clear();
      end->sl_to_vl.reset();
    }
  if (state == SmState::standby) master_seen_ = now_;
  view_.state = state;
  view_.state_since = now_;
  if (state == SmState::master) note(Notice::Level::info, "this end is the cable's subnet manager");
  if (state == SmState::standby) note(Notice::Level::info, "the other end is the cable's subnet manager");
}

void SubnetManager::go_down() {
  requests_.clear();
  view_.own.port.reset();
  view_.peer = {};
  view_.peer_sm.reset();
  if (settings_.manage && (view_.state != SmState::not_active || view_.stage == Stage::stopped))
    become(SmState::discovering);
  enter(Stage::down);
  ask({.attribute = SmAttribute::port_info, .modifier = settings_.port, .blocking = true});
}

void SubnetManager::sweep(bool elect) {
  const bool link_just_found = view_.stage == Stage::down && view_.own.port;
  requests_.clear();
  ++view_.counters.sweeps;
  bringing_up_ = link_just_found;
  sweep_requests_ = link_just_found ? 1 : 0;
  if (elect && view_.state != SmState::not_active) become(SmState::discovering);
  enter(Stage::discovering);
  if (!link_just_found)
    ask({.attribute = SmAttribute::port_info, .modifier = settings_.port, .blocking = true});
  if (!view_.own.node) ask({.attribute = SmAttribute::node_info, .blocking = true});
  ask({.target = Target::peer, .attribute = SmAttribute::node_info, .blocking = true});
}

void SubnetManager::elect() {
  const NodeInfo &own = *view_.own.node, &peer = *view_.peer.node;
  if (own.port_guid() == peer.port_guid()) {
    const bool same_port = own.node_guid() == peer.node_guid();
    note(Notice::Level::error, same_port ? "the port is cabled to itself" : "duplicate port GUID");
    return enter(Stage::refused, same_port
                                     ? "The port is cabled to itself: plug the cable into another host."
                                     : "Both ends of the cable have port GUID " + to_string(own.port_guid()) +
                                           ": give one of the adapters another.");
  }
  view_.prefix = cable_prefix(own.port_guid(), peer.port_guid());
  view_.peer_sm.reset();
  if (view_.state == SmState::not_active) return settle();
  ++view_.counters.elections;
  enter(Stage::electing);
  if (view_.peer.port->is_sm())
    ask({.target = Target::peer, .attribute = SmAttribute::sm_info, .blocking = true});
}

void SubnetManager::configure() {
  become(SmState::master);
  enter(Stage::configuring);
  // An answer to an earlier poll must not overwrite what the ports say now.
  std::erase_if(requests_,
                [](const auto& entry) { return entry.second.attribute == SmAttribute::port_info; });
  std::tie(view_.planned_own_lid, view_.planned_peer_lid) = plan_lids();
  for (const Target target : {Target::own, Target::peer}) {
    const PortInfo planned = plan(target);
    planned_[index(target)] = planned.given();
    if (must_set(target))
      set_port(target, planned);
    else
      accepted_[index(target)] = end(target).port->given();
  }
}

void SubnetManager::arm() {
  reregister_ = false;  // said in configuring, to ports that had clients
  enter(Stage::arming);
  for (const Target target : {Target::own, Target::peer}) {
    if (end(target).port->state() != PortState::initialize) continue;
    PortInfo info = plan(target);
    info.set_state(PortState::armed);
    set_port(target, info);
  }
}

void SubnetManager::activate() {
  enter(Stage::activating);
  for (const Target target : {Target::own, Target::peer}) {
    if (end(target).port->state() != PortState::armed) continue;
    PortInfo info = plan(target);
    info.set_state(PortState::active);
    set_port(target, info);
  }
}

void SubnetManager::settle() {
  if (view_.state == SmState::master) {
    if (view_.own.port->state() != PortState::active || view_.peer.port->state() != PortState::active)
      return back_off("a port does not become Active");
  }
  if (std::exchange(bringing_up_, false)) {
    view_.bring_up_requests = sweep_requests_;
    if (std::string slow = view_.slow_link(); !slow.empty()) note(Notice::Level::warning, std::move(slow));
  }
  enter(Stage::settled);
  polls_ = 0;
  take_inventory();
}

void SubnetManager::back_off(std::string reason) {
  requests_.clear();
  enter(Stage::backing_off, std::move(reason));
}

void SubnetManager::advance() {
  while (!blocked()) {
    switch (view_.stage) {
      case Stage::discovering:
        elect();
        break;
      case Stage::electing: {
        const auto& other = view_.peer_sm;
        const bool yield =
            other && other->state() != SmState::not_active &&
            (view_.state != SmState::master ? other->state() == SmState::master || peer_wins()
                                            : other->state() == SmState::master && peer_wins());
        if (yield) {
          become(SmState::standby);
          settle();
          return;
        }
        configure();
        break;
      }
      case Stage::configuring:
        arm();
        break;
      case Stage::arming:
        activate();
        break;
      case Stage::activating:
        settle();
        return;
      case Stage::stopped:
      case Stage::down:
      case Stage::settled:
      case Stage::backing_off:
      case Stage::refused:
        return;
    }
  }
}

// --- watching ----------------------------------------------------------------------------------------------

Duration SubnetManager::poll_interval() const {
  switch (view_.stage) {
    case Stage::down:
      return kDownPoll;
    case Stage::backing_off:
      return kBackoff;
    case Stage::refused:
      return kRefusedPoll;
    case Stage::settled:
      if (view_.state == SmState::master) return kMasterPoll;
      return !view_.active() && now_ - stage_since_ < kImpatience ? kImpatientPoll : kStandbyPoll;
    case Stage::stopped:
    case Stage::discovering:
    case Stage::electing:
    case Stage::configuring:
    case Stage::arming:
    case Stage::activating:
      break;
  }
  return Duration::zero();
}

void SubnetManager::poll() {
  poll_at_ = now_ + poll_interval();
  if (!view_.peer.node) return go_down();  // told to stand by before it was known who is there
  if (!asking(Target::own, SmAttribute::port_info))
    ask({.attribute = SmAttribute::port_info, .modifier = settings_.port});
  if (!asking(Target::peer, SmAttribute::port_info))
    ask({.target = Target::peer,
         .attribute = SmAttribute::port_info,
         .modifier = view_.peer.node->local_port()});
  const bool ask_manager = view_.state == SmState::standby ||
                           (view_.state == SmState::master && view_.peer.port && view_.peer.port->is_sm());
  if (ask_manager && ++polls_ % kPollsPerSmInfo == 0 && !asking(Target::peer, SmAttribute::sm_info))
    ask({.target = Target::peer, .attribute = SmAttribute::sm_info});
}

void SubnetManager::take_inventory() {
  for (const Target target : {Target::own, Target::peer}) {
    const End& known = end(target);
    if (!known.node || !known.port) continue;  // told to stand by before it was known who is there
    if (known.description.empty()) ask({.target = target, .attribute = SmAttribute::node_description});
    const auto blocks = [](unsigned entries, std::size_t size) {
      return static_cast<std::uint16_t>(std::clamp<std::size_t>((entries + size - 1) / size, 1, kMostBlocks));
    };
    for (std::uint16_t block = 0; block < blocks(known.node->partition_cap(), PkeyTable::kBlock); ++block)
      if (!known.pkeys.contains(block))
        ask({.target = target, .attribute = SmAttribute::pkey_table, .modifier = block});
    for (std::uint16_t block = 0; block < blocks(known.port->guid_cap(), verbs::GuidInfo::kBlock); ++block)
      if (!known.guids.contains(block))
        ask({.target = target, .attribute = SmAttribute::guid_info, .modifier = block});
    if (!known.sl_to_vl) ask({.target = target, .attribute = SmAttribute::sl_to_vl_table});
    const unsigned low = known.port->vl_arbitration_low_cap(), high = known.port->vl_arbitration_high_cap();
    for (const auto& [block, exists] : {std::pair(1U, low > 0), std::pair(2U, low > kVlArbitrationBlock),
                                        std::pair(3U, high > 0), std::pair(4U, high > kVlArbitrationBlock)})
      if (exists && !known.vl_arbitration.contains(static_cast<std::uint16_t>(block)))
        ask({.target = target, .attribute = SmAttribute::vl_arbitration_table, .modifier = block << 16});
  }
}

// --- plans -------------------------------------------------------------------------------------------------

std::pair<Lid, Lid> SubnetManager::plan_lids() const {
  const NodeInfo &own_node = *view_.own.node, &peer_node = *view_.peer.node;
  const std::uint8_t lmc = settings_.lmc;
  const auto agreed = [&](Guid host) {
    const auto found = settings_.base_lids.find(host);
    return found != settings_.base_lids.end() && usable(found->second, lmc) ? found->second : kNoLid;
  };
  Lid own = agreed(settings_.host);
  // Before the other end has introduced itself its host may be known by its adapter.
  Lid peer = kNoLid;
  for (const Guid host : {neighbour_host_, peer_node.node_guid(), peer_node.system_image_guid()})
    if (peer == kNoLid) peer = agreed(host);
  if (own == peer) own = peer = kNoLid;  // both unknown, or both ends belong to this host

  // Layouts that were made with another LMC are not kept: their blocks could overlap.
  const auto present = [&](const End& end) {
    return end.port->lmc() == lmc && usable(end.port->lid(), lmc) ? end.port->lid() : kNoLid;
  };
  const auto [own_provisional, peer_provisional] =
      provisional_lids(own_node.port_guid(), peer_node.port_guid(), lmc);
  const auto choose = [&](Lid taken, std::initializer_list<Lid> candidates) {
    for (const Lid lid : candidates)
      if (lid != kNoLid && !overlap(lid, taken, lmc)) return lid;
    return kNoLid;
  };
  if (own == kNoLid) own = choose(peer, {present(view_.own), own_provisional, peer_provisional});
  if (peer == kNoLid) peer = choose(own, {present(view_.peer), peer_provisional, own_provisional});
  return {own, peer};
}

PortInfo SubnetManager::plan(Target target) const {
  const auto [own, peer] = plan_lids();
  PortInfo info = *end(target).port;
  info.set_state(PortState::no_change);
  info.set_physical_state(0);  // no change
  info.keep_link_width_and_speed();
  info.set_link_down_default(PortInfo::kPhysicalPolling);
  info.set_m_key(settings_.m_key);
  info.set_m_key_protection(settings_.m_key == 0 ? 0 : kProtectSets);
  info.set_m_key_lease(settings_.m_key == 0 ? 0s : kMkeyLease);
  info.set_gid_prefix(view_.prefix);
  info.set_lid(target == Target::own ? own : peer);
  info.set_lmc(settings_.lmc);
  info.set_sm_lid(own);
  info.set_sm_sl(0);
  info.set_subnet_timeout(kSubnetTimeout);
  info.set_neighbor_mtu(std::min(view_.own.port->mtu_cap(), view_.peer.port->mtu_cap()));
  info.set_operational_vls(std::min(view_.own.port->vl_cap(), view_.peer.port->vl_cap()));
  info.set_error_thresholds(kErrorThreshold, kErrorThreshold);
  info.set_client_reregister(reregister_ && (info.capability_mask() & kCapabilityClientReregister) != 0 &&
                             end(target).port->state() >= PortState::armed);
  return info;
}

bool SubnetManager::must_set(Target target) const {
  const PortInfo &present = *end(target).port, planned = plan(target);
  return present.state() == PortState::initialize || planned.client_reregister() ||
         present.given() != planned.given();
}

void SubnetManager::follow_plan() {
  if (view_.stage != Stage::settled || view_.state != SmState::master) return;
  if (plan(Target::own).given() != planned_[0] || plan(Target::peer).given() != planned_[1]) configure();
}

bool SubnetManager::peer_wins() const {
  const SmInfo& other = *view_.peer_sm;
  if (other.priority() != settings_.priority) return other.priority() > settings_.priority;
  return other.guid() < settings_.port_guid;
}

SmInfo SubnetManager::own_sm_info() const {
  SmInfo info;
  info.set_guid(settings_.port_guid);
  info.set_sm_key(kSmKey);
  info.set_priority_and_state(settings_.priority, view_.state);
  info.set_activity(static_cast<std::uint32_t>(view_.counters.requests));
  return info;
}

// --- requests ----------------------------------------------------------------------------------------------

void SubnetManager::ask(Request request) {
  const std::uint8_t egress = request.target == Target::own ? 0 : settings_.port;
  Mad mad = verbs::directed_route_request(request.method, request.attribute, request.modifier, egress);
  if (request.method == MadMethod::set) request.payload.store(mad);
  const auto& port = end(request.target).port;
  mad.set_m_key(port && port->m_key() != 0 ? port->m_key() : settings_.m_key);
  const std::uint32_t tid = next_tid_++;
  mad.set_tid(tid);
  const auto timeout =
      std::min<std::chrono::milliseconds>(kFirstTimeout * (1 << request.attempt), kLongestTimeout);
  ++view_.counters.requests;
  if (request.blocking) ++sweep_requests_;
  requests_.emplace(tid, std::move(request));
  actions_.emplace_back(SendMad{mad, {.lid = verbs::kPermissiveLid, .qpn = Qpn{0}}, timeout});
}

void SubnetManager::set_port(Target target, const PortInfo& info) {
  ask({.target = target,
       .method = MadMethod::set,
       .attribute = SmAttribute::port_info,
       .modifier = end(target).node->local_port(),
       .payload = info,
       .blocking = true});
}

bool SubnetManager::asking(Target target, SmAttribute attribute) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& entry) {
    return entry.second.target == target && entry.second.attribute == attribute;
  });
}

bool SubnetManager::blocked() const {
  return std::any_of(requests_.begin(), requests_.end(),
                     [](const auto& entry) { return entry.second.blocking; });
}

void SubnetManager::note(Notice::Level level, std::string text) {
  actions_.emplace_back(Notice{level, std::move(text)});
}

}  // namespace fabric::daemon::subnet
