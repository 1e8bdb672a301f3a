// How the cores work together. One call of handle() goes through these steps:
//
//   event -> adjacency, link-state database      (what has changed)
//         -> own advertisement                   (advertise)
//         -> map, ways, assigner, LID table      (compute; paced by NodeTimers::hold)
//         -> agreement, forwarding state         (publish)
//         -> messages                            (flush: one batch per neighbour and call)
//
// The forwarding state is published before the messages of the same call go out: what a host says of its map
// (routing/agreement.hpp) is already true when somebody hears it.
#include "routing/node.hpp"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "routing/adjacency.hpp"
#include "routing/agreement.hpp"
#include "routing/lid_assignment.hpp"
#include "routing/link_state.hpp"
#include "routing/messages.hpp"
#include "routing/topology.hpp"
#include "routing/ways.hpp"

namespace fabric::routing {
namespace {

constexpr std::uint64_t kBitsPerMega = 1'000'000;
/// Cost of 1 bit/s; 10 Gbit/s costs 100, 100 Gbit/s 10, a terabit and more 1.
constexpr std::uint64_t kReferenceRate = 1'000'000'000'000;
/// The pause between computations doubles while changes keep coming, up to hold times this.
constexpr int kMaxBackoff = 64;
/// So many advertisements of another with the own GUID within kDuplicateWindow mean that it is alive.
constexpr unsigned kDuplicates = 4;
constexpr Duration kDuplicateWindow = std::chrono::seconds(10);
constexpr Duration kStandBack = std::chrono::seconds(30);

std::uint32_t cost_of(std::uint64_t rate) {
  if (rate == 0) return kMaxCost;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kReferenceRate / rate, 1, kMaxCost));
}

/// As people count the ports of a host.
std::string number_of(PortIndex port) {
  return "port " + std::to_string(port.value() + 1);
}

std::string milliseconds(Duration duration) {
  return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(duration).count()) + " ms";
}

}  // namespace

class Node::Implementation {
 public:
  Implementation(NodeSettings given, std::optional<LidTable> kept) : settings_(std::move(given)) {
    settings_.lanes = std::clamp<std::uint8_t>(settings_.lanes, 1, 16);
    if (settings_.name.size() > kMaxName) settings_.name.resize(kMaxName);
    if (kept && valid(*kept)) table_ = std::move(*kept);
    held_ = index_in(table_, settings_.guid);
    // Above all that this host has said before, as long as incarnations grow; else contest() gets it there.
    sequence_ = std::uint64_t{settings_.incarnation} << 30;
    prefixes_ = settings_.prefixes;
  }

  std::vector<Action> handle(TimePoint now, const Event& event) {
    actions_.clear();
    if (!started_) start(now);
    excuse_own_pause(now);
    now_ = now;
    std::visit([this](const auto& e) { on(e); }, event);
    run_timers();
    if (advertise_due_) advertise(false);
    compute_if_due();
    flush();
    timer_ = earliest_timer();
    return std::move(actions_);
  }

  // --- inspection
  NodeSettings settings_;
  LidTable table_;
  std::shared_ptr<const ForwardingState> forwarding_ = std::make_shared<ForwardingState>();
  std::optional<TimePoint> timer_ = TimePoint::min();

  [[nodiscard]] NodeView view() const {
    NodeView view;
    view.generation = forwarding_->generation;
    view.last_reroute = last_reroute_;
    view.last_reroute_reason = last_reroute_reason_;
    view.map = map_;
    view.settled = waiting_.empty();
    view.assigner = assigner_;
    view.advertisements = link_state_.records().size();
    view.floods = floods_;
    view.computations = computations_;
    view.disagreements = disagreements_;
    return view;
  }

  [[nodiscard]] std::vector<HostView> hosts() const {
    std::vector<HostView> result;
    const Weakness weakness = find_weakness(topology_);
    for (const auto& [guid, record] : link_state_.records()) {
      const Advertisement& advertisement = record.advertisement;
      HostView& host = result.emplace_back();
      host.guid = guid;
      host.name = advertisement.name;
      host.index = index_in(table_, guid);
      host.incarnation = advertisement.incarnation;
      host.priority = advertisement.priority;
      host.self = guid == settings_.guid;
      host.assigner = guid == assigner_;
      host.drained = advertisement.drained;
      host.settled = advertisement.map == map_;
      host.sequence = advertisement.sequence;
      host.age = now_ - record.born;
      host.prefixes = advertisement.prefixes;
      if (const auto since = way_since_.find(guid); since != way_since_.end()) host.way_since = since->second;
      if (const auto h = topology_.find(guid); h != Topology::kNone) {
        host.reachable = topology_.hosts[h].reachable;
        host.critical = weakness.hosts[h];
      }
    }
    return result;
  }

  [[nodiscard]] std::vector<CableView> cables() const {
    std::vector<CableView> result;
    const Weakness weakness = find_weakness(topology_);
    for (std::size_t c = 0; c < topology_.cables.size(); ++c) {
      const auto& cable = topology_.cables[c];
      CableView& view = result.emplace_back();
      const auto end = [&](const Topology::Cable::End& e) {
        return CableView::End{topology_.hosts[e.host].guid, e.port, e.cost, e.up};
      };
      view.ends = {end(cable.a), end(cable.b)};
      const auto key = [](const CableView::End& e) { return std::pair(e.host, e.port); };
      if (key(view.ends[1]) < key(view.ends[0])) std::swap(view.ends[0], view.ends[1]);
      view.rate = cable.rate * kBitsPerMega;
      view.up = cable.live;
      view.bridge = weakness.cables[c];
    }
    const auto key = [](const CableView& view) { return std::pair(view.ends[0].host, view.ends[0].port); };
    std::sort(result.begin(), result.end(), [&](const auto& x, const auto& y) { return key(x) < key(y); });
    return result;
  }

  [[nodiscard]] std::vector<AdjacencyView> adjacencies() const {
    std::vector<AdjacencyView> result;
    for (const auto& [port, adjacency] : adjacencies_) {
      result.push_back(adjacency.view());
      const auto known = links_.find(port);
      result.back().damped = known != links_.end() && known->second.damped_until.has_value();
    }
    return result;
  }

  [[nodiscard]] std::vector<Hop> path(Guid from, Guid to, unsigned way) const {
    std::vector<Hop> result;
    const auto a = topology_.find(from), b = topology_.find(to);
    if (a == Topology::kNone || b == Topology::kNone || a == b || way >= kWays) return result;
    std::uint32_t host = a;
    for (const std::uint32_t index : ways_.path(topology_, a, b, way)) {
      const Topology::Arc& arc = topology_.arcs[index];
      const auto& near = topology_.near_end(host, arc);
      const auto& far = topology_.far_end(host, arc);
      const auto& cable = topology_.cables[arc.cable];
      result.push_back({topology_.hosts[host].guid, topology_.hosts[arc.to].guid, near.port, far.port,
                        near.cost, cable.rate * kBitsPerMega, cable.live});
      host = arc.to;
    }
    return result;
  }

 private:
  // --- events
  void start(TimePoint now) {
    started_ = true;
    now_ = started_at_ = map_changed_ = last_computation_ = now;
    advertise(true);
  }

  /// The timers come late: this host has not run, so the neighbours' silence means nothing.
  void excuse_own_pause(TimePoint now) {
    if (!timer_ || *timer_ == TimePoint::min() || now <= *timer_ + settings_.timers.keepalive) return;
    for (auto& [port, adjacency] : adjacencies_) adjacency.excuse(now);
    notice(Notice::Level::warning, "slept", "this host did not run for " + milliseconds(now - *timer_));
  }

  void on(const CableUp& event) {
    Adjacency& adjacency = adjacencies_.try_emplace(event.port, event.port, settings_.timers).first->second;
    if (adjacency.connected()) lose(adjacency, "connected anew");
    if (event.neighbour.host == settings_.guid) {
      notice(Notice::Level::error, "self",
             number_of(event.port) +
                 " is joined to a host with this host's GUID: a cable to itself, or a duplicate GUID");
      return;
    }
    if (now_ < stand_back_until_) return;
    const std::uint32_t cost = event.cost != 0 ? event.cost : cost_of(event.rate);
    adjacency.connect(now_, event, std::clamp(cost, 1u, kMaxCost));

    // Another neighbour than the remembered one: that cable is no more.
    if (const auto link = links_.find(event.port); link != links_.end()) {
      const Link& known = link->second.link;
      if (known.neighbour != event.neighbour.host || known.neighbour_port.value() != event.neighbour.port) {
        links_.erase(link);
        advertise_due_ = true;
      }
    }
    send(adjacency, encode(Message(Hello{settings_.guid, settings_.incarnation, event.port})));
    std::vector<Flooded> all;
    for (const auto& [guid, record] : link_state_.records()) all.push_back(LinkState::flooded(record, now_));
    for (auto& message : encode_all(all)) send(adjacency, std::move(message));
    if (table_.version != 0)
      for (auto& message : encode_all(table_)) send(adjacency, std::move(message));
    send(adjacency, encode(Message(DatabaseEnd{})));
  }

  void on(const CableDown& event) {
    if (const auto found = adjacencies_.find(event.port); found != adjacencies_.end())
      lose(found->second, event.reason);
  }

  void on(const PrefixesChanged& event) {
    prefixes_ = event.prefixes;
    if (prefixes_.size() > kMaxPrefixes) {
      notice(Notice::Level::error, "prefixes",
             std::to_string(prefixes_.size()) + " prefixes are served; only the first " +
                 std::to_string(kMaxPrefixes) + " are advertised");
      prefixes_.resize(kMaxPrefixes);
    }
    advertise_due_ = true;
  }

  void on(const DrainChanged& event) {
    drained_ = event.drained;
    advertise_due_ = true;
  }

  void on(const GatewayStateChanged& event) {
    gateway_ = event.state;
    if (gateway_.size() > kMaxGatewayState) gateway_.clear();  // a caller's fault; better silent than refused
    advertise_due_ = true;
  }

  void on(const TimerExpired&) {}

  void on(const MessageReceived& event) {
    const auto found = adjacencies_.find(event.port);
    if (found == adjacencies_.end() || !found->second.connected()) return;
    Adjacency& adjacency = found->second;
    const auto message = decode_message(event.message);
    if (!message) return nonsense(adjacency, "a message that does not decode");
    switch (adjacency.received(now_, *message)) {
      case Adjacency::Effect::nothing:
        break;
      case Adjacency::Effect::full:
        return become_full(adjacency);
      case Adjacency::Effect::lid_table:
        return received_table(adjacency, adjacency.take_table());
      case Adjacency::Effect::nonsense:
        return nonsense(adjacency, "a message that makes no sense in this state");
    }
    if (const auto* advertisements = std::get_if<Advertisements>(&*message))
      for (const Flooded& item : advertisements->items)
        if (!received_advertisement(adjacency, item))
          return nonsense(adjacency, "an advertisement that does not decode");
  }

  // --- adjacencies
  void become_full(Adjacency& adjacency) {
    const AdjacencyView& view = adjacency.view();
    Known& known = links_[view.port];
    known.link = {view.port, view.neighbour.host, PortIndex(view.neighbour.port),
                  true,      view.cost,           static_cast<std::uint32_t>(view.rate / kBitsPerMega)};
    known.forget = TimePoint::max();
    if (known.flaps >= settings_.timers.flaps && reachable_.contains(view.neighbour.host)) {
      known.link.up = false;
      const unsigned doubled = std::min(known.flaps - settings_.timers.flaps, 16u);
      known.damped_until =
          now_ + std::min(settings_.timers.damping * (1 << doubled), settings_.timers.damping_max);
      notice(Notice::Level::warning, "damped",
             "port " + std::to_string(view.port.value()) + " keeps failing: not used for " +
                 milliseconds(*known.damped_until - now_));
    }
    advertise_due_ = true;
    notice(Notice::Level::info, "adjacency-full", number_of(view.port) + ": " + view.neighbour.name);
  }

  void lose(Adjacency& adjacency, const std::string& reason) {
    if (!adjacency.connected()) return;
    const Duration life = now_ - adjacency.view().since;
    adjacency.disconnect(now_, reason);
    outbox_.erase(adjacency.view().port);
    if (const auto link = links_.find(adjacency.view().port);
        link != links_.end() && link->second.forget == TimePoint::max()) {
      Known& known = link->second;
      known.link.up = false;
      known.damped_until.reset();
      known.forget = now_ + settings_.timers.remember;
      known.flaps = life < settings_.timers.flap ? known.flaps + 1 : 0;
      advertise_due_ = true;
    }
    notice(Notice::Level::warning, "adjacency-down",
           number_of(adjacency.view().port) + ": " + adjacency.view().neighbour.name + ": " + reason);
  }

  void reset(Adjacency& adjacency, const std::string& reason) {
    lose(adjacency, reason);
    actions_.emplace_back(std::in_place_type<ResetCable>, ResetCable{adjacency.view().port, reason});
  }

  void nonsense(Adjacency& adjacency, const std::string& what) {
    adjacency.malformed();
    reset(adjacency, adjacency.view().neighbour.name + " has sent " + what);
  }

  // --- flooding
  bool received_advertisement(Adjacency& adjacency, const Flooded& item) {
    const auto key = decode_key(item.advertisement);
    if (!key) return false;
    const auto age = std::chrono::seconds(item.age);
    if (key->origin == settings_.guid) {
      contest(*key);
      return true;
    }
    switch (link_state_.compare(*key)) {
      case LinkState::News::same:
        return true;
      case LinkState::News::older:
        outbox_[adjacency.view().port].insert(key->origin);
        return true;
      case LinkState::News::newer:
        break;
    }
    auto advertisement = decode_advertisement(item.advertisement);
    if (!advertisement) return false;
    if (age < settings_.timers.max_age)
      store(std::move(*advertisement), item.advertisement, now_ - age, &adjacency);
    return true;
  }

  /// Stores news, floods it to all but `from`, and notes what has to be computed.
  void store(Advertisement advertisement, std::vector<std::byte> encoded, TimePoint born,
             const Adjacency* from) {
    const Guid origin = advertisement.origin;
    const auto replaced = link_state_.store(std::move(advertisement), std::move(encoded), born);
    const Advertisement& present = link_state_.find(origin)->advertisement;
    for (auto& [port, adjacency] : adjacencies_)
      if (adjacency.connected() && &adjacency != from) outbox_[port].insert(origin);
    if (origin != settings_.guid && (!replaced || replaced->advertisement.gateway != present.gateway) &&
        (replaced || !present.gateway.empty()))
      actions_.emplace_back(std::in_place_type<GatewayHeard>, GatewayHeard{origin, present.gateway});
    const bool waited = !waiting_.empty();
    if (present.map == map_)
      waiting_.erase(origin);
    else if (reachable_.contains(origin) && waiting_.insert(origin).second && !waited)
      agree_by_ = now_ + settings_.timers.agreement;
    if (replaced) {  // is there anything else than the sequence number and what the ways do not depend on?
      Advertisement& before = replaced->advertisement;
      before.sequence = present.sequence;
      before.map = present.map;
      before.gateway = present.gateway;
      if (before == present) {
        if (waited) settle_if_agreed();
        return;
      }
      if (before.links != present.links) map_changed_ = now_;
    } else {
      map_changed_ = now_;
    }
    computation_due(now_);
  }

  /// Somebody has an advertisement of this host: an old one of before the restart, or there are two of us.
  void contest(const AdvertisementKey& key) {
    const Advertisement& mine = link_state_.find(settings_.guid)->advertisement;
    if (std::tuple(key.sequence, key.incarnation) <= std::tuple(mine.sequence, mine.incarnation)) return;
    sequence_ = std::max(sequence_, key.sequence);
    advertise_again_ = advertise_due_ = true;
    if (now_ >= contested_ + kDuplicateWindow) {
      contested_ = now_;
      contests_ = 0;
    }
    // Neighbours may remember several old ones, but each answer to a new one of ours is somebody's who is
    // alive.
    if (++contests_ < kDuplicates) return;
    contests_ = 0;
    notice(Notice::Level::error, "duplicate-guid",
           "another host has this host's GUID " + to_string(settings_.guid));
    if (key.incarnation > settings_.incarnation) return;
    // The one that started last stands back (incarnations grow); of two equal ones both do.
    stand_back_until_ = now_ + kStandBack;
    for (auto& [port, adjacency] : adjacencies_)
      if (adjacency.connected()) reset(adjacency, "another host has this host's GUID");
  }

  void advertise(bool refresh) {
    Advertisement advertisement;
    advertisement.origin = settings_.guid;
    advertisement.incarnation = settings_.incarnation;
    advertisement.priority = settings_.priority;
    advertisement.drained = drained_ || starting_;
    advertisement.name = settings_.name;
    advertisement.map = map_;
    advertisement.prefixes = prefixes_;
    advertisement.gateway = gateway_;
    const auto claim = [&](Claim claim, HostIndex index) {
      if (advertisement.claim != Claim::none || index == kNoHost || index > kMaxHostIndex) return;
      advertisement.claim = claim;
      advertisement.index = index;
    };
    claim(Claim::held, held_);
    claim(Claim::configured, settings_.preferred);
    claim(Claim::name, index_from_name(settings_.name));
    for (const auto& [port, known] : links_) advertisement.links.push_back(known.link);

    advertise_due_ = false;
    const auto* present = link_state_.find(settings_.guid);
    if (present != nullptr && !refresh && !std::exchange(advertise_again_, false)) {
      advertisement.sequence = present->advertisement.sequence;
      if (advertisement == present->advertisement) return;
    }
    advertisement.sequence = ++sequence_;
    auto encoded = encode(advertisement);
    refresh_at_ = now_ + settings_.timers.refresh;
    store(std::move(advertisement), std::move(encoded), now_, nullptr);
  }

  // --- LID table
  void received_table(Adjacency& adjacency, LidTable table) {
    if (supersedes(table, table_)) {
      accept_table(std::move(table), &adjacency);
      computation_due(now_);
    } else if (supersedes(table_, table)) {
      for (auto& message : encode_all(table_)) send(adjacency, std::move(message));
    }
  }

  void accept_table(LidTable table, const Adjacency* from) {
    table_ = std::move(table);
    if (const HostIndex index = index_in(table_, settings_.guid); index != kNoHost && index != held_) {
      held_ = index;
      advertise_due_ = true;
      notice(Notice::Level::info, "lid-block", "this host is number " + std::to_string(index.value()));
    }
    actions_.emplace_back(std::in_place_type<LidsAgreed>, LidsAgreed{table_});
    for (auto& [port, other] : adjacencies_)
      if (other.connected() && &other != from)
        for (auto& message : encode_all(table_)) send(other, std::move(message));
  }

  /// Gives indexes to those who have none, if that is this host's job and its time has come.
  bool assign_if_elected(const std::vector<Candidate>& reachable) {
    assign_at_.reset();
    if (assigner_ != settings_.guid) return false;
    if (table_.version == 0) {
      const bool alone = reachable.size() == 1;
      const TimePoint due =
          alone ? started_at_ + settings_.timers.alone : map_changed_ + settings_.timers.settle;
      if (now_ < due) {
        assign_at_ = due;
        return false;
      }
    }
    LidTable table = assign(table_, reachable);
    if (table.version == table_.version) return false;
    accept_table(std::move(table), nullptr);
    return true;
  }

  // --- computation
  void computation_due(TimePoint at) {
    if (!compute_at_) compute_at_ = std::max(at, last_computation_ + settings_.timers.hold * backoff_);
  }

  void compute_if_due() {
    if (assign_at_ && now_ >= *assign_at_) {
      assign_at_.reset();
      compute_at_ = now_;
    }
    if (!compute_at_ || now_ < *compute_at_) return;
    compute_at_.reset();
    const Duration pause = now_ - last_computation_;
    backoff_ = pause > 4 * backoff_ * settings_.timers.hold ? 1 : std::min(2 * backoff_, kMaxBackoff);
    last_computation_ = now_;
    compute();
    if (advertise_due_) advertise(false);
  }

  void compute() {
    ++computations_;
    std::vector<const Advertisement*> advertisements;
    advertisements.reserve(link_state_.records().size());
    for (const auto& [guid, record] : link_state_.records()) advertisements.push_back(&record.advertisement);
    topology_ = make_topology(settings_.guid, advertisements, table_);

    std::vector<Candidate> reachable;
    std::unordered_set<Guid> reachable_now;
    for (const auto& host : topology_.hosts) {
      if (!host.reachable) continue;
      const Advertisement& advertisement = link_state_.find(host.guid)->advertisement;
      reachable.push_back({host.guid, advertisement.priority, advertisement.claim, advertisement.index});
      reachable_now.insert(host.guid);
      if (host.guid != settings_.guid && !reachable_.contains(host.guid)) {
        notice(Notice::Level::info, "host-up", advertisement.name);
        actions_.emplace_back(std::in_place_type<ReachabilityChanged>, ReachabilityChanged{host.guid, true});
      }
    }
    for (const Guid guid : reachable_) {
      if (reachable_now.contains(guid)) continue;
      notice(Notice::Level::warning, "host-gone", name_of(guid));
      actions_.emplace_back(std::in_place_type<ReachabilityChanged>, ReachabilityChanged{guid, false});
    }
    reachable_ = std::move(reachable_now);
    if (const Guid elected = elect(reachable); elected != assigner_) {
      assigner_ = elected;
      notice(Notice::Level::info, "assigner", name_of(elected));
    }
    if (assign_if_elected(reachable)) topology_ = make_topology(settings_.guid, advertisements, table_);

    ways_.compute(topology_);
    if (ways_.hash() != map_) {
      map_ = ways_.hash();
      advertise_due_ = true;
    }
    agreement_.propose(target(), live_ports());
    waiting_.clear();
    for (const Guid guid : reachable_)
      if (guid != settings_.guid && link_state_.find(guid)->advertisement.map != map_) waiting_.insert(guid);
    agree_by_ = now_ + settings_.timers.agreement;
    if (waiting_.empty()) settle();
    publish();
  }

  void settle() {
    agreement_.settle();
    if (starting_ && reachable_.size() > 1 && held_ != kNoHost) {
      starting_ = false;
      advertise_due_ = true;
    }
  }

  [[nodiscard]] std::string name_of(Guid guid) const {
    const auto* record = link_state_.find(guid);
    return record == nullptr || record->advertisement.name.empty() ? to_string(guid)
                                                                   : record->advertisement.name;
  }

  /// Egress by LID, as the ways have it.
  [[nodiscard]] std::vector<PortIndex> target() const {
    HostIndex highest = kNoHost;
    for (const auto& host : topology_.hosts) highest = std::max(highest, host.index);
    std::vector<PortIndex> egress((highest.value() + 1u) << kLmc, kNoPort);
    for (std::uint32_t h = 0; h < topology_.hosts.size(); ++h) {
      if (topology_.hosts[h].index == kNoHost) continue;
      for (unsigned way = 0; way < kWays; ++way) {
        const std::uint32_t arc = ways_.towards(h)[way].arc;
        if (arc != Topology::kNone)
          egress[lid_of(topology_.hosts[h].index, way).value()] =
              topology_.near_end(topology_.self, topology_.arcs[arc]).port;
      }
    }
    return egress;
  }

  [[nodiscard]] Agreement::Ports live_ports() const {
    Agreement::Ports live;
    for (const auto& arc : topology_.arcs_of(topology_.self))
      if (topology_.cables[arc.cable].live) live.set(topology_.near_end(topology_.self, arc).port.value());
    return live;
  }

  void settle_if_agreed() {
    if (!waiting_.empty() || compute_at_) return;
    settle();
    publish();
  }

  // --- publication
  void publish() {
    auto state = std::make_shared<ForwardingState>();
    state->self = index_in(table_, settings_.guid);
    state->egress = agreement_.entries();
    state->hosts.resize(std::max<std::size_t>(state->egress.size() >> kLmc, state->self.value() + 1u));
    for (std::uint32_t h = 0; h < topology_.hosts.size(); ++h) publish_host(*state, h);
    publish_prefixes(*state);

    const ForwardingState& before = *forwarding_;
    const bool rerouted = changed_lanes(before, *state);
    state->generation = before.generation;
    if (same(before, *state) && before.generation != 0) return;
    ++state->generation;
    if (rerouted) {
      last_reroute_ = now_;
      ++reroutes_;
    }
    forwarding_ = std::move(state);
    actions_.emplace_back(std::in_place_type<Publish>, Publish{forwarding_});
  }

  void publish_host(ForwardingState& state, std::uint32_t h) const {
    const Topology::Host& host = topology_.hosts[h];
    if (host.index == kNoHost) return;
    HostRoute& route = state.hosts[host.index.value()];
    route.guid = host.guid;
    route.name = name_of(host.guid);
    route.index = host.index;
    route.reachable = host.reachable;
    unsigned best = 0;
    for (unsigned way = 0; way < kWays; ++way) {
      const Ways::Way& from = ways_.towards(h)[way];
      HostRoute::Way& to = route.ways[way];
      if (from.arc == Topology::kNone) continue;
      to.egress = state.egress[lid_of(host.index, way).value()];
      to.whole = from.whole && to.egress != kNoPort;
      to.cost = static_cast<std::uint32_t>(std::min<std::uint64_t>(from.cost, 0xFFFFFFFF));
      to.hops = static_cast<std::uint16_t>(std::min<std::uint32_t>(from.hops, 0xFFFF));
      const HostRoute::Way& other = route.ways[best];
      if (std::tuple(!to.whole, to.egress == kNoPort, to.cost) <
          std::tuple(!other.whole, other.egress == kNoPort, other.cost))
        best = way;
    }
    const bool both = settings_.multipath && route.ways[0].whole && route.ways[1].whole &&
                      route.ways[0].cost == route.ways[1].cost;
    route.lanes.resize(settings_.lanes);
    for (std::size_t lane = 0; lane < route.lanes.size(); ++lane)
      route.lanes[lane] = static_cast<std::uint8_t>(both ? lane % kWays : best);
  }

  /// Of several hosts with the same prefix the cheapest to reach counts, then the lower index.
  void publish_prefixes(ForwardingState& state) const {
    std::map<Prefix, std::pair<std::uint32_t, HostIndex>> best;
    for (const HostRoute& route : state.hosts) {
      if (route.guid == Guid{} || !route.reachable) continue;
      const HostRoute::Way& way = route.ways[route.lanes.empty() ? 0 : route.lanes[0]];
      const std::pair key(route.guid == settings_.guid ? 0 : way.cost, route.index);
      for (const Prefix& prefix : link_state_.find(route.guid)->advertisement.prefixes) {
        const auto [place, added] = best.try_emplace(prefix, key);
        if (!added) place->second = std::min(place->second, key);
      }
    }
    for (const auto& [prefix, key] : best) state.prefixes.emplace_back(prefix, key.second);
    std::sort(state.prefixes.begin(), state.prefixes.end(), [](const auto& x, const auto& y) {
      return std::tuple(y.first.length, x.first.address) < std::tuple(x.first.length, y.first.address);
    });
  }

  bool changed_lanes(const ForwardingState& before, const ForwardingState& after) {
    std::string changed;
    std::size_t count = 0;
    for (std::size_t i = 0; i < after.hosts.size(); ++i) {
      static const HostRoute none;
      const HostRoute& x = i < before.hosts.size() ? before.hosts[i] : none;
      const HostRoute& y = after.hosts[i];
      if (y.guid == Guid{} || (x.guid == y.guid && x.lanes == y.lanes && x.reachable == y.reachable))
        continue;
      way_since_[y.guid] = now_;
      if (x.guid != y.guid || x.lanes == y.lanes) continue;
      if (++count <= 3) changed += (count > 1 ? ", " : "") + y.name;
    }
    if (count == 0) return false;
    if (count > 3) changed += " and " + std::to_string(count - 3) + " more";
    last_reroute_reason_ = changed;
    notice(Notice::Level::info, "way-changed", changed);
    return true;
  }

  static bool same(const ForwardingState& x, const ForwardingState& y) {
    const auto host = [](const HostRoute& h) {
      const auto way = [](const HostRoute::Way& w) { return std::tuple(w.egress, w.cost, w.hops, w.whole); };
      return std::tuple(h.guid, h.name, h.index, h.reachable, way(h.ways[0]), way(h.ways[1]), h.lanes);
    };
    return x.self == y.self && x.egress == y.egress && x.prefixes == y.prefixes &&
           std::equal(x.hosts.begin(), x.hosts.end(), y.hosts.begin(), y.hosts.end(),
                      [&](const auto& a, const auto& b) { return host(a) == host(b); });
  }

  // --- timers
  void run_timers() {
    for (auto& [port, adjacency] : adjacencies_) {
      switch (adjacency.due(now_)) {
        case Adjacency::Due::nothing:
          break;
        case Adjacency::Due::keepalive:
          send(adjacency, encode(Message(Hello{settings_.guid, settings_.incarnation, port})));
          break;
        case Adjacency::Due::dead:
          reset(adjacency,
                adjacency.view().neighbour.name + " was silent for " + milliseconds(settings_.timers.dead));
          break;
      }
    }
    for (auto& [port, known] : links_) {
      if (!known.damped_until) continue;
      if (now_ < *known.damped_until && reachable_.contains(known.link.neighbour)) continue;
      known.damped_until.reset();
      known.link.up = true;
      advertise_due_ = true;
    }
    const auto forgotten =
        std::erase_if(links_, [&](const auto& link) { return now_ >= link.second.forget; });
    if (forgotten != 0) advertise_due_ = true;
    if (now_ >= refresh_at_) {
      advertise(true);
      if (link_state_.forget(now_ - settings_.timers.max_age, settings_.guid) != 0) computation_due(now_);
    }
    if (!waiting_.empty() && now_ >= agree_by_) {
      // Better a frame that goes in a circle until its hop limit ends than ways that never change.
      ++disagreements_;
      notice(Notice::Level::warning, "disagreement",
             name_of(*waiting_.begin()) + " does not work with the same map after " +
                 milliseconds(settings_.timers.agreement));
      waiting_.clear();
      settle();
      publish();
    }
  }

  [[nodiscard]] std::optional<TimePoint> earliest_timer() const {
    TimePoint earliest = refresh_at_;
    for (const auto& [port, adjacency] : adjacencies_)
      if (const auto timer = adjacency.next_timer()) earliest = std::min(earliest, *timer);
    for (const auto& [port, known] : links_)
      earliest = std::min({earliest, known.forget, known.damped_until.value_or(known.forget)});
    for (const auto& timer : {compute_at_, assign_at_})
      if (timer) earliest = std::min(earliest, *timer);
    if (!waiting_.empty()) earliest = std::min(earliest, agree_by_);
    return earliest;
  }

  // --- output
  void send(Adjacency& adjacency, std::vector<std::byte> message) {
    adjacency.sent(now_);
    actions_.emplace_back(std::in_place_type<SendMessage>,
                          SendMessage{adjacency.view().port, std::move(message)});
  }

  void flush() {
    for (const auto& [port, origins] : std::exchange(outbox_, {})) {
      const auto adjacency = adjacencies_.find(port);
      if (adjacency == adjacencies_.end() || !adjacency->second.connected()) continue;
      std::vector<Flooded> items;
      for (const Guid origin : origins)
        if (const auto* record = link_state_.find(origin)) items.push_back(LinkState::flooded(*record, now_));
      floods_ += items.size();
      for (auto& message : encode_all(items)) send(adjacency->second, std::move(message));
    }
  }

  void notice(Notice::Level level, std::string kind, std::string text) {
    actions_.emplace_back(std::in_place_type<Notice>, Notice{level, std::move(kind), std::move(text)});
  }

  struct Known {
    Link link;
    TimePoint forget;                       ///< when a cable that is down leaves the map
    unsigned flaps = 0;                     ///< short lives in a row
    std::optional<TimePoint> damped_until;  ///< it is up, but not advertised as such
  };

  std::vector<Action> actions_;
  TimePoint now_, started_at_;
  bool started_ = false;

  std::map<PortIndex, Adjacency> adjacencies_;
  std::map<PortIndex, Known> links_;  ///< cables as this host advertises them
  std::vector<Prefix> prefixes_;
  std::vector<std::byte> gateway_;
  bool drained_ = false;
  /// Until it has agreed on its entries with others: who sent through it sooner would lose what has none yet.
  bool starting_ = true;
  HostIndex held_ = kNoHost;  ///< the index that this host had last

  LinkState link_state_;
  std::map<PortIndex, std::unordered_set<Guid>> outbox_;  ///< whose advertisements each neighbour lacks
  std::uint64_t sequence_ = 0;
  bool advertise_due_ = false, advertise_again_ = false;
  TimePoint refresh_at_ = TimePoint::max();
  TimePoint contested_, stand_back_until_;
  unsigned contests_ = 0;

  Topology topology_;
  Ways ways_;
  Agreement agreement_;
  std::uint64_t map_ = 0;
  std::unordered_set<Guid> reachable_;
  std::unordered_set<Guid> waiting_;  ///< reachable hosts that work with another map
  TimePoint agree_by_ = TimePoint::max();
  Guid assigner_;
  TimePoint map_changed_, last_computation_;
  int backoff_ = 1;
  std::optional<TimePoint> compute_at_, assign_at_;

  std::unordered_map<Guid, TimePoint> way_since_;
  TimePoint last_reroute_;
  std::string last_reroute_reason_;
  std::uint64_t floods_ = 0, computations_ = 0, disagreements_ = 0, reroutes_ = 0;
};

Node::Node(NodeSettings settings, std::optional<LidTable> kept)
    : implementation_(std::make_unique<Implementation>(std::move(settings), std::move(kept))) {}
Node::~Node() = default;
Node::Node(Node&&) noexcept = default;
Node& Node::operator=(Node&&) noexcept = default;

std::vector<Action> Node::handle(TimePoint now, const Event& event) {
  return implementation_->handle(now, event);
}
std::optional<TimePoint> Node::next_timer() const {
  return implementation_->timer_;
}
const NodeSettings& Node::settings() const {
  return implementation_->settings_;
}
NodeView Node::view() const {
  return implementation_->view();
}
std::vector<HostView> Node::hosts() const {
  return implementation_->hosts();
}
std::vector<CableView> Node::cables() const {
  return implementation_->cables();
}
std::vector<AdjacencyView> Node::adjacencies() const {
  return implementation_->adjacencies();
}
const LidTable& Node::lid_table() const {
  return implementation_->table_;
}
const std::shared_ptr<const ForwardingState>& Node::forwarding() const {
  return implementation_->forwarding_;
}
std::vector<Hop> Node::path(Guid from, Guid to, unsigned way) const {
  return implementation_->path(from, to, way);
}

}  // namespace fabric::routing
