#include "tests/simulation/simulation.hpp"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <sstream>
#include <utility>

#include "routing/messages.hpp"

namespace fabric::simulation {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using namespace routing;

namespace {
std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}
constexpr int kDropped = -1, kDelivered = -2;
}  // namespace

Simulation::Simulation(Options options) : options_(std::move(options)), random_(options_.seed) {}

int Simulation::add_host(std::string name, std::optional<Guid> guid) {
  Host host;
  host.name = std::move(name);
  host.guid = guid.value_or(Guid(random_() | 1));
  hosts_.push_back(std::move(host));
  return static_cast<int>(hosts_.size()) - 1;
}

int Simulation::add_cable(int a, int b, std::uint32_t cost) {
  const int number = static_cast<int>(cables_.size());
  Cable cable;
  cable.cost = cost;
  for (const int end : {0, 1}) {
    Host& host = hosts_[at(end == 0 ? a : b)];
    std::uint8_t port = 0;
    while (host.ports.contains(PortIndex(port))) ++port;
    cable.ends[at(end)].host = end == 0 ? a : b;
    cable.ends[at(end)].port = PortIndex(port);
    host.ports[PortIndex(port)] = {number, end};
  }
  cables_.push_back(std::move(cable));
  try_connect(number);
  return number;
}

void Simulation::remove_cable(int number) {
  Cable& cable = cables_[at(number)];
  if (cable.removed) return;  // its ports may have another cable by now
  cut(number, false);
  for (const int end : {0, 1}) {
    close_end(number, end, "pulled out");
    hosts_[at(cable.ends[at(end)].host)].ports.erase(cable.ends[at(end)].port);
  }
  cable.removed = true;
}

bool Simulation::works(int number) const {
  const Cable& cable = cables_[at(number)];
  return !cable.removed && cable.passes[0] && cable.passes[1];
}

std::optional<std::pair<int, int>> Simulation::ends(int number) const {
  const Cable& cable = cables_[at(number)];
  if (cable.removed) return std::nullopt;
  return std::pair(cable.ends[0].host, cable.ends[1].host);
}

// --- time

void Simulation::after(Duration delay, std::function<void()> what) {
  queue_.push({now_ + delay, ++order_, std::move(what)});
}

Duration Simulation::upto(Duration most) {
  return Duration(static_cast<Duration::rep>(random_() % static_cast<std::uint64_t>(most.count() + 1)));
}

void Simulation::run_for(Duration time) {
  const TimePoint end = now_ + time;
  while (!queue_.empty() && queue_.top().at <= end) {
    auto what = std::move(const_cast<Happening&>(queue_.top()).what);
    now_ = queue_.top().at;
    queue_.pop();
    what();
    if (std::exchange(forwarding_changed_, false)) {
      last_change_ = now_;
      if (options_.check_loops && !ambiguous_) check_loops();
    }
  }
  now_ = end;
}

TimePoint Simulation::run_until_quiet(Duration quiet, Duration limit) {
  const TimePoint end = now_ + limit;
  last_change_ = now_;
  while (now_ < last_change_ + quiet) {
    if (now_ >= end) violated("does not become quiet");
    run_for(milliseconds(1));
    if (now_ >= last_change_ + quiet && damped()) last_change_ = now_;
  }
  return last_change_;
}

bool Simulation::damped() const {
  for (const Host& host : hosts_)
    if (host.node)
      for (const auto& adjacency : host.node->adjacencies())
        if (adjacency.damped) return true;
  return false;
}

// --- hosts

void Simulation::start(int number) {
  Host& host = hosts_[at(number)];
  if (host.node || host.retired) return;
  say(host.name + " starts");
  NodeSettings settings;
  settings.guid = host.guid;
  settings.name = host.name;
  settings.incarnation = ++host.incarnation * 1000 + static_cast<std::uint32_t>(random_() % 1000);
  settings.timers = options_.timers;
  host.incarnation = settings.incarnation / 1000;
  host.node = std::make_unique<Node>(std::move(settings), host.kept);
  host.timer_at.reset();
  host.forgiven = 0;
  host.index = kNoHost;
  host.drained = false;
  if (host.kept) note_table(number, *host.kept);
  deliver(number, TimerExpired{});
  for (const auto& [port, place] : host.ports) try_connect(place.first);
}

void Simulation::set_ambiguous(bool ambiguous) {
  ambiguous_ = ambiguous;
  was_ambiguous_ = true;
  for (Host& host : hosts_)
    if (host.node) host.forgiven = host.node->view().disagreements;
}

void Simulation::forget(int number, bool clock) {
  Host& host = hosts_[at(number)];
  if (host.node) return;
  say(host.name + (clock ? " forgets its table and the time" : " forgets its table"));
  host.kept.reset();
  if (clock) host.incarnation = 0;
}

void Simulation::restore(int number) {
  Host& host = hosts_[at(number)];
  if (host.node || !host.oldest) return;
  say(host.name + " goes back to an old backup");
  host.kept = host.oldest;
  host.incarnation = 0;
}

void Simulation::kill(int number, bool silent) {
  Host& host = hosts_[at(number)];
  if (!host.node) return;
  say(host.name + (silent ? " dies silently" : " dies"));
  host.node.reset();
  host.state.reset();
  ++host.timer;
  forwarding_changed_ = true;
  for (const auto& [port, place] : host.ports) {
    Cable& cable = cables_[at(place.first)];
    cable.ends[at(place.second)].opened = 0;
    cable.ends[at(place.second)].early.clear();
    cable.closed[at(place.second)] = true;
    cable.broken = true;
    detect(place.first, !silent);
  }
}

void Simulation::deliver(int number, const Event& event) {
  Host& host = hosts_[at(number)];
  auto actions = host.node->handle(now_, event);
  const std::uint64_t map = host.node->view().map;
  if (options_.verbose && host.map != map) {
    char text[32];
    std::snprintf(text, sizeof text, ": map %016llx", static_cast<unsigned long long>(map));
    say(host.name + text);
  }
  host.map = map;
  carry_out(number, actions);
  if (!host.node) return;
  const auto timer = host.node->next_timer();
  if (timer == host.timer_at) return;
  host.timer_at = timer;
  const std::uint64_t mine = ++host.timer;
  if (!timer || *timer == TimePoint::max()) return;
  after(std::max(*timer - now_, Duration::zero()), [this, number, mine] {
    Host& h = hosts_[at(number)];
    if (h.timer != mine || !h.node) return;
    h.timer_at.reset();
    deliver(number, TimerExpired{});
  });
}

void Simulation::carry_out(int number, std::vector<Action>& actions) {
  Host& host = hosts_[at(number)];
  for (Action& action : actions) {
    if (auto* send = std::get_if<SendMessage>(&action)) {
      if (send->message.size() > kMaxMessage) violated(host.name + " sends a message that is too long");
      transmit(number, send->port, std::move(send->message));
    } else if (const auto* reset = std::get_if<ResetCable>(&action)) {
      const auto [cable, end] = host.ports.at(reset->port);
      after(Duration::zero(), [this, cable = cable, end = end, reason = reset->reason,
                               connection = cables_[at(cable)].ends[at(end)].opened] {
        if (cables_[at(cable)].ends[at(end)].opened == connection) close_end(cable, end, reason);
      });
    } else if (const auto* agreed = std::get_if<LidsAgreed>(&action)) {
      host.kept = agreed->table;
      if (!host.oldest) host.oldest = agreed->table;
      note_table(number, agreed->table);
    } else if (const auto* publish = std::get_if<Publish>(&action)) {
      host.state = publish->state;
      forwarding_changed_ = true;
    } else if (const auto* notice = std::get_if<Notice>(&action)) {
      if (options_.verbose) say(host.name + ": " + notice->kind + ": " + notice->text);
      if (notice->kind == "disagreement" && !ambiguous_) violated(host.name + ": " + notice->text);
      if (notice->kind == "duplicate-guid") ++duplicates_noticed_;
    }
  }
}

/// An index moves only when two hosts had the same one, or to one that the host had before (where fabrics
/// that grew apart both know the host): nothing else may take it away.
void Simulation::note_table(int number, const LidTable& table) {
  Host& host = hosts_[at(number)];
  HostIndex index = kNoHost;
  std::set<HostIndex> indexes;
  for (const auto& entry : table.entries) {
    if (entry.host == host.guid) index = entry.index;
    if (!indexes.insert(entry.index).second) violated(host.name + " was given a table with an index twice");
  }
  if (index == kNoHost) return;
  if (host.index != kNoHost && host.index != index) {
    // A twin may have been given a number, in the name of the other, that the other would not have got.
    bool conflict =
        was_ambiguous_ || host.former.contains(index) || now_ - host.index_since < milliseconds(200);
    for (const auto& entry : table.entries)
      conflict = conflict || (entry.index == host.index && entry.host != host.guid);
    if (!conflict)
      violated(host.name + " moved from " + std::to_string(host.index.value()) + " to " +
               std::to_string(index.value()) + " without need");
    ++moves_;
    say(host.name + " moves from " + std::to_string(host.index.value()) + " to " +
        std::to_string(index.value()));
  }
  if (host.index != index) host.index_since = now_;
  host.index = index;
  host.former.insert(index);
}

void Simulation::drain(int number, bool drained) {
  Host& host = hosts_[at(number)];
  if (!host.node || host.drained == drained) return;
  say(host.name + (drained ? " is drained" : " is no longer drained"));
  host.drained = drained;
  deliver(number, DrainChanged{drained});
}

// --- cables

void Simulation::try_connect(int number) {
  Cable& cable = cables_[at(number)];
  const auto possible = [this](const Cable& c) {
    return !c.removed && c.passes[0] && c.passes[1] && c.closed[0] && c.closed[1] &&
           hosts_[at(c.ends[0].host)].node && hosts_[at(c.ends[1].host)].node;
  };
  if (cable.connecting || !possible(cable)) return;
  cable.connecting = true;
  after(milliseconds(5) + upto(options_.connect_delay), [this, number, possible] {
    Cable& c = cables_[at(number)];
    c.connecting = false;
    if (!possible(c)) return;
    c.connection = ++connections_;
    c.closed = {false, false};
    c.broken = false;
    for (const int end : {0, 1}) {
      c.ends[at(end)].early.clear();
      c.ends[at(end)].last_arrival = now_;
      after(upto(milliseconds(3)),
            [this, number, end, connection = c.connection] { open_end(number, end, connection); });
    }
  });
}

void Simulation::open_end(int number, int side, std::uint64_t connection) {
  Cable& cable = cables_[at(number)];
  End& end = cable.ends[at(side)];
  if (cable.connection != connection || cable.closed[at(side)] || !hosts_[at(end.host)].node) return;
  end.opened = connection;
  forwarding_changed_ = true;
  const End& other = cable.ends[at(1 - side)];
  const Host& neighbour = hosts_[at(other.host)];
  CableUp event;
  event.port = end.port;
  event.rate = 100'000'000'000;
  event.cost = cable.cost;
  if (!neighbour.node) return detect(number, true);
  event.neighbour = {neighbour.guid, neighbour.name, other.port.value(),
                     neighbour.node->settings().incarnation};
  deliver(end.host, event);
  while (!end.early.empty() && end.opened == connection) {
    auto message = std::move(end.early.front());
    end.early.pop_front();
    deliver(end.host, MessageReceived{end.port, std::move(message)});
  }
}

void Simulation::close_end(int number, int side, const std::string& reason) {
  Cable& cable = cables_[at(number)];
  End& end = cable.ends[at(side)];
  if (cable.closed[at(side)]) return;
  cable.closed[at(side)] = true;
  cable.broken = true;
  end.early.clear();
  if (std::exchange(end.opened, 0) != 0) {
    forwarding_changed_ = true;
    deliver(end.host, CableDown{end.port, reason});
  }
  // The other end is told, if the cable can carry it; else it has to find out.
  if (!cable.closed[at(1 - side)]) {
    const bool told = cable.passes[at(side)];
    const bool soon = random_() % 10 < 7;
    if (told || soon)
      after(told ? upto(milliseconds(10)) : milliseconds(20) + upto(milliseconds(40)),
            [this, number, side, connection = cable.connection] {
              if (cables_[at(number)].connection == connection) close_end(number, 1 - side, "peer");
            });
  }
  try_connect(number);
}

/// A fault has happened: how the ends notice.
void Simulation::detect(int number, bool announced) {
  Cable& cable = cables_[at(number)];
  for (const int end : {0, 1}) {
    if (cable.closed[at(end)]) continue;
    Duration delay = upto(milliseconds(2));
    if (!announced) {
      if (random_() % 10 >= 7) continue;  // the Node's dead interval has to do it
      delay = milliseconds(20) + upto(milliseconds(40));
    }
    after(delay, [this, number, end, connection = cable.connection, announced] {
      if (cables_[at(number)].connection == connection)
        close_end(number, end, announced ? "port event" : "heartbeat");
    });
  }
}

void Simulation::cut(int number, bool silent) {
  Cable& cable = cables_[at(number)];
  if (cable.removed) return;
  say("cable " + std::to_string(number) + " " + hosts_[at(cable.ends[0].host)].name + "-" +
      hosts_[at(cable.ends[1].host)].name + (silent ? " is cut silently" : " is cut"));
  cable.passes = {false, false};
  cable.broken = true;
  forwarding_changed_ = true;
  detect(number, !silent);
}

void Simulation::cut_direction(int number, bool from_a) {
  Cable& cable = cables_[at(number)];
  if (cable.removed) return;
  say("cable " + std::to_string(number) + " loses one direction");
  cable.passes[from_a ? 0 : 1] = false;
  forwarding_changed_ = true;
  detect(number, false);
}

void Simulation::mend(int number) {
  Cable& cable = cables_[at(number)];
  if (cable.removed || (cable.passes[0] && cable.passes[1])) return;
  say("cable " + std::to_string(number) + " is mended");
  // What was lost meanwhile is lost: the connection does not recover.
  cable.broken = true;
  cable.passes = {true, true};
  try_connect(number);
}

void Simulation::transmit(int number, PortIndex port, std::vector<std::byte> message) {
  const auto place = hosts_[at(number)].ports.find(port);
  if (place == hosts_[at(number)].ports.end()) return;
  const auto [index, side] = place->second;
  Cable& cable = cables_[at(index)];
  End& from = cable.ends[at(side)];
  if (from.opened == 0 || from.opened != cable.connection) return;
  ++messages_;
  bytes_ += message.size();
  End& to = cable.ends[at(1 - side)];
  const TimePoint arrival = std::max(to.last_arrival, now_ + microseconds(5) + upto(options_.message_delay));
  to.last_arrival = arrival;
  after(arrival - now_,
        [this, index = index, side = side, connection = from.opened, message = std::move(message)]() mutable {
          Cable& c = cables_[at(index)];
          End& end = c.ends[at(1 - side)];
          // One way may go on working when the other does not.
          const bool lost = !c.passes[at(side)] || (c.broken && c.passes[at(1 - side)]);
          if (c.connection != connection || c.closed[at(1 - side)] || lost) {
            c.broken = c.broken || c.connection == connection;
            return;
          }
          if (end.opened == 0)
            end.early.push_back(std::move(message));
          else
            deliver(end.host, MessageReceived{end.port, std::move(message)});
        });
}

// --- forwarding

bool Simulation::port_alive(const Host& host, PortIndex port) const {
  const auto place = host.ports.find(port);
  if (place == host.ports.end()) return false;
  return cables_[at(place->second.first)].ends[at(place->second.second)].opened != 0;
}

int Simulation::step(int number, Lid& lid, bool& turned) const {
  const Host& host = hosts_[at(number)];
  const ForwardingState& state = *host.state;
  if (host_of(lid) == state.self) return kDelivered;
  const auto egress = [&](Lid l) {
    const PortIndex port = l.value() < state.egress.size() ? state.egress[l.value()] : kNoPort;
    return port != kNoPort && port_alive(host, port) ? port : kNoPort;
  };
  PortIndex port = egress(lid);
  if (port == kNoPort) {
    if (turned) return kDropped;
    turned = true;
    lid = Lid(lid.value() ^ 1);
    port = egress(lid);
    if (port == kNoPort) return kDropped;
  }
  const auto [index, side] = host.ports.at(port);
  const Cable& cable = cables_[at(index)];
  const End& other = cable.ends[at(1 - side)];
  // What the neighbour's end is not open for does not arrive.
  if (other.opened != cable.ends[at(side)].opened || !cable.passes[at(side)]) return kDropped;
  return hosts_[at(other.host)].state ? other.host : kDropped;
}

void Simulation::check_loops() {
  ++loop_checks_;
  std::size_t lids = 0;
  for (const Host& host : hosts_)
    if (host.state) lids = std::max(lids, host.state->egress.size());
  const std::size_t states = hosts_.size() * lids * 2;
  // Colour 0: not visited; n > 0: visited in walk n. Meeting one's own colour is a circle.
  colours_.assign(states, 0);
  std::uint32_t colour = 0;
  for (std::size_t h = 0; h < hosts_.size(); ++h) {
    if (!hosts_[h].state) continue;
    for (std::size_t l = 1 << kLmc; l < lids; ++l) {
      ++colour;
      int host = static_cast<int>(h);
      Lid lid(static_cast<std::uint16_t>(l));
      bool turned = false;
      while (host >= 0) {
        auto& mark = colours_[(at(host) * lids + lid.value()) * 2 + (turned ? 1 : 0)];
        if (mark == colour)
          violated("a frame from " + hosts_[h].name + " to LID " + std::to_string(l) +
                   " goes in a circle at " + hosts_[at(host)].name);
        if (mark != 0) break;
        mark = colour;
        host = step(host, lid, turned);
      }
    }
  }
}

int Simulation::walk(int from, Lid lid, std::vector<int>* hops, bool* turned) const {
  int host = from;
  bool mark = false;
  for (std::size_t limit = 4 * hosts_.size(); limit > 0; --limit) {
    const int next = step(host, lid, mark);
    if (turned != nullptr) *turned = mark;
    if (next == kDelivered) return host;
    if (next == kDropped) return -1;
    if (hops != nullptr) hops->push_back(next);
    host = next;
  }
  return -1;
}

std::vector<bool> Simulation::connected(int from) const {
  std::vector<bool> result(hosts_.size());
  std::vector<int> queue{from};
  result[at(from)] = true;
  for (std::size_t i = 0; i < queue.size(); ++i)
    for (const auto& [port, place] : hosts_[at(queue[i])].ports) {
      const Cable& cable = cables_[at(place.first)];
      const int other = cable.ends[at(1 - place.second)].host;
      if (works(place.first) && hosts_[at(other)].node && !result[at(other)]) {
        result[at(other)] = true;
        queue.push_back(other);
      }
    }
  return result;
}

void Simulation::check_quiet(int every) {
  if (options_.check_loops) check_loops();
  for (int a = 0; a < static_cast<int>(hosts_.size()); ++a) {
    const Host& host = hosts_[at(a)];
    if (!host.node || a % every != 0) continue;
    const auto reach = connected(a);
    const ForwardingState& state = *host.state;
    if (state.self == kNoHost) violated(host.name + " has no LIDs");
    if (!host.node->view().settled) violated(host.name + " has not settled");
    if (host.node->view().disagreements != host.forgiven)
      violated(host.name + " did not wait for the others");
    if (host.node->forwarding() != host.state) violated(host.name + " forwards by an old state");

    // Cheapest costs, naively (Bellman and Ford).
    std::vector<std::uint64_t> cheapest(hosts_.size(), std::numeric_limits<std::uint32_t>::max());
    cheapest[at(a)] = 0;
    for (bool better = true; std::exchange(better, false);)
      for (int c = 0; c < static_cast<int>(cables_.size()); ++c) {
        const int x = cables_[at(c)].ends[0].host, y = cables_[at(c)].ends[1].host;
        if (!works(c) || !hosts_[at(x)].node || !hosts_[at(y)].node) continue;
        const bool drained = hosts_[at(x)].drained || hosts_[at(y)].drained;
        const std::uint64_t cost = cables_[at(c)].cost + (drained ? kDrainedCost : 0);
        for (const auto& [to, from] : {std::pair(x, y), std::pair(y, x)})
          if (cheapest[at(from)] + cost < cheapest[at(to)]) {
            cheapest[at(to)] = cheapest[at(from)] + cost;
            better = true;
          }
      }
    const bool two_ports =
        std::all_of(hosts_.begin(), hosts_.end(), [](const Host& h) { return h.ports.size() <= 2; });

    for (int b = 0; b < static_cast<int>(hosts_.size()); ++b) {
      const Host& other = hosts_[at(b)];
      if (!other.node || a == b) continue;
      const std::string pair = host.name + " to " + other.name;
      const auto index = other.state->self;
      if (!reach[at(b)]) {
        if (index.value() < state.hosts.size() && state.hosts[index.value()].guid == other.guid &&
            state.hosts[index.value()].reachable)
          violated(pair + ": said to be reachable");
        continue;
      }
      if (index == state.self) violated(pair + ": the same LIDs");
      if (host.node->lid_table().entries != other.node->lid_table().entries ||
          host.node->lid_table().version != other.node->lid_table().version)
        violated(pair + ": different LID tables");
      if (host.node->view().assigner != other.node->view().assigner) violated(pair + ": different assigners");
      if (host.node->view().map != other.node->view().map) violated(pair + ": different maps");
      if (index.value() >= state.hosts.size() || state.hosts[index.value()].guid != other.guid)
        violated(pair + ": not in the table");
      const HostRoute& route = state.hosts[index.value()];
      if (!route.reachable) violated(pair + ": said to be unreachable");
      for (const std::uint8_t way : route.lanes) {
        const HostRoute::Way& said = route.ways[way];
        bool turned = false;
        std::vector<int> hops;
        if (walk(a, lid_of(index, way), &hops, &turned) != b) violated(pair + ": does not arrive");
        if (turned) violated(pair + ": is turned though it is quiet");
        if (!said.whole) violated(pair + ": picks a way that is not whole");
        if (said.hops != hops.size()) violated(pair + ": counts other hops");
        if (said.cost < cheapest[at(b)]) violated(pair + ": cheaper than possible");
        if (two_ports && said.cost != cheapest[at(b)]) violated(pair + ": not the cheapest way");
      }
      for (unsigned way = 0; way < kWays; ++way) {
        bool turned = false;
        const int end = walk(a, lid_of(index, way), nullptr, &turned);
        if (end != b) violated(pair + ": way " + std::to_string(way) + " does not arrive, not even turned");
        if (turned == route.ways[way].whole)
          violated(pair + ": way " + std::to_string(way) + " is wrongly said to be (not) whole");
      }
    }
  }
}

void Simulation::say(const std::string& text) const {
  if (options_.verbose)
    std::printf("%10.3f ms  %s\n", std::chrono::duration<double, std::milli>(now_.time_since_epoch()).count(),
                text.c_str());
}

std::string Simulation::dump() const {
  std::ostringstream out;
  for (std::size_t c = 0; c < cables_.size(); ++c) {
    const Cable& cable = cables_[c];
    if (cable.removed) continue;
    out << "  cable " << c << ": ";
    for (const int end : {0, 1}) {
      const End& e = cable.ends[at(end)];
      out << hosts_[at(e.host)].name << " port " << int(e.port.value()) << (e.opened != 0 ? " up" : " down")
          << (cable.passes[at(end)] ? "" : " (lost)") << (end == 0 ? " -- " : "\n");
    }
  }
  for (const Host& host : hosts_) {
    out << "  " << host.name << " " << to_string(host.guid);
    if (!host.node) {
      out << " off\n";
      continue;
    }
    const auto view = host.node->view();
    out << " index " << host.state->self.value() << " map " << std::hex << view.map << std::dec
        << (view.settled ? " settled" : " waiting") << " table " << host.node->lid_table().version
        << " egress";
    for (std::size_t lid = 2; lid < host.state->egress.size(); ++lid) {
      const auto port = host.state->egress[lid];
      out << ' ' << lid << '>' << (port == kNoPort ? std::string("-") : std::to_string(port.value()));
    }
    out << "\n";
    out << "    knows";
    for (const auto& known : host.node->hosts())
      out << ' ' << known.name << ':' << known.sequence << (known.reachable ? "" : "-");
    out << '\n';
    for (const auto& adjacency : host.node->adjacencies())
      out << "    port " << int(adjacency.port.value()) << ' ' << routing::to_string(adjacency.state) << ' '
          << adjacency.neighbour.name << ' ' << adjacency.reason << "\n";
  }
  return out.str();
}

void Simulation::violated(const std::string& text) const {
  const double ms = std::chrono::duration<double, std::milli>(now_.time_since_epoch()).count();
  throw Violation("at " + std::to_string(ms) + " ms: " + text + "\n" + dump());
}

}  // namespace fabric::simulation
