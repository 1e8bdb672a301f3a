#include "fabricd/control/views.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <charconv>
#include <set>

#include "fabricd/control/doctor.hpp"
#include "fabricd/host.hpp"
#include "routing/messages.hpp"

namespace fabric::daemon {

namespace json = boost::json;

namespace {

json::value port_number(PortIndex port) {
  return port == kNoPort ? json::value(nullptr) : json::value(port.value() + 1);
}

json::string text(std::string_view view) {
  return json::string(view.data(), view.size());
}

json::array addresses_of(const Configuration& configuration, HostIndex index) {
  json::array addresses;
  for (const auto& network : {configuration.network.ipv4, configuration.network.ipv6}) {
    if (const auto address = host_address(network, index)) addresses.push_back(text(to_string(*address)));
  }
  return addresses;
}

double seconds_since(std::chrono::system_clock::time_point time) {
  return std::chrono::duration<double>(std::chrono::system_clock::now() - time).count();
}

std::optional<routing::HostView> host_by_guid(const routing::Node& node, Guid guid) {
  for (auto& host : node.hosts()) {
    if (host.guid == guid) return host;
  }
  return std::nullopt;
}

/// The ways that this host's own traffic to another takes now.
std::set<unsigned> chosen_ways(const routing::ForwardingState& state, HostIndex to) {
  if (to.value() >= state.hosts.size() || !state.hosts[to.value()].reachable) return {};
  const auto& lanes = state.hosts[to.value()].lanes;
  return {lanes.begin(), lanes.end()};
}

struct Way {
  std::vector<routing::Hop> hops;
  bool whole = false;
  std::uint64_t cost = 0, rate = 0;
};

Way way_between(const routing::Node& node, Guid from, Guid to, unsigned way) {
  Way result;
  result.hops = node.path(from, to, way);
  result.whole = !result.hops.empty();
  for (const routing::Hop& hop : result.hops) {
    result.whole = result.whole && hop.up;
    result.cost += hop.cost;
    result.rate = result.rate == 0 ? hop.rate : std::min(result.rate, hop.rate);
  }
  return result;
}

/// Why traffic takes the ways that are chosen.
std::string why(const json::array& ways, const routing::Node& node) {
  const json::object *chosen = nullptr, *other = nullptr;
  unsigned count = 0;
  for (const auto& value : ways) {
    const json::object& way = value.as_object();
    (way.at("chosen").as_bool() ? chosen : other) = &way;
    if (way.at("chosen").as_bool()) ++count;
  }
  if (count > 1) return "both ways cost the same, so flows are spread over them";
  const auto cut = [](const json::object& way) -> std::string {
    for (const auto& value : way.at("hops").as_array()) {
      const json::object& hop = value.as_object();
      if (hop.at("up").as_bool()) continue;
      return fmt::format("between {} and {}", std::string_view(hop.at("from").as_string()),
                         std::string_view(hop.at("to").as_string()));
    }
    return "";
  };
  if (chosen == nullptr) return other == nullptr ? "no way is known" : "both ways are cut";
  if (other == nullptr || other->at("hops") == chosen->at("hops")) return "there is no other way";
  if (!other->at("whole").as_bool()) return fmt::format("the other way is cut {}", cut(*other));
  const auto cost = chosen->at("cost").to_number<std::uint64_t>();
  const auto other_cost = other->at("cost").to_number<std::uint64_t>();
  if (cost == other_cost) return "both ways cost the same, and multipath is off";
  if (other_cost - cost >= routing::kDrainedCost / 2) {
    for (const auto& host : node.hosts()) {
      if (!host.drained) continue;
      const json::array& hops = other->at("hops").as_array();
      for (std::size_t i = 1; i < hops.size(); ++i) {
        if (hops[i].at("from").as_string() == host.name)
          return fmt::format("the other way leads through {}, which is drained", host.name);
      }
    }
  }
  return fmt::format("it is the cheaper one: {}, the other way {}", cost, other_cost);
}

json::object to_json(const Failover& failover) {
  const auto microseconds = [](std::chrono::nanoseconds duration) {
    return std::chrono::duration<double, std::micro>(duration).count();
  };
  return {{"seconds_ago", seconds_since(failover.time)},
          {"port", failover.port.value() + 1},
          {"detector", failover.detector},
          {"reason", failover.reason},
          {"detached_us", microseconds(failover.detached)},
          {"published_us", microseconds(failover.published)}};
}

template <class Figures>
json::object figures(const Figures& list) {
  json::object result;
  for (const auto& figure : list) result[text(figure.name)] = figure.value;
  return result;
}

}  // namespace

std::string_view word_of(verbs::CablePhase phase) {
  switch (phase) {
    case verbs::CablePhase::no_device:
      return "no-device";
    case verbs::CablePhase::down:
      return "down";
    case verbs::CablePhase::configuring:
      return "configuring";
    case verbs::CablePhase::greeting:
      return "greeting";
    case verbs::CablePhase::connected:
      return "connected";
    case verbs::CablePhase::refused:
      return "refused";
  }
  return "unknown";
}

routing::HostView find_host(const routing::Node& node, const Configuration& configuration,
                            std::string_view word) {
  const auto hosts = node.hosts();
  std::vector<routing::HostView> named;
  for (const auto& host : hosts) {
    if (host.name == word) named.push_back(host);
  }
  if (named.size() == 1) return named.front();
  if (named.size() > 1) {
    throw RequestError(
        fmt::format("{} hosts are called {}; say which by GUID or address", named.size(), word));
  }
  std::uint64_t number = 0;
  const bool hexadecimal = word.starts_with("0x");
  const char* const begin = word.data() + (hexadecimal ? 2 : 0);
  const auto [end, error] = std::from_chars(begin, word.data() + word.size(), number, hexadecimal ? 16 : 10);
  const bool is_number = error == std::errc{} && end == word.data() + word.size();
  const auto address = parse_address(word);
  std::vector<std::string> names;
  for (const auto& host : hosts) {
    if (is_number &&
        (hexadecimal ? host.guid.value() == number : number != 0 && host.index.value() == number)) {
      return host;
    }
    for (const auto& network : {configuration.network.ipv4, configuration.network.ipv6}) {
      if (address && host_address(network, host.index) == address) return host;
    }
    names.push_back(host.name);
  }
  const std::string nearest = nearest_word(word, names);
  throw RequestError(nearest.empty()
                         ? fmt::format("no host {} is known here; `fabricctl host` lists them", word)
                         : fmt::format("no host {} is known here; did you mean {}?", word, nearest));
}

json::array ways_between(const Host& host, const routing::HostView& from, const routing::HostView& to) {
  const routing::Node& node = host.node();
  std::array<Way, routing::kWays> ways;
  for (unsigned way = 0; way < routing::kWays; ++way) ways[way] = way_between(node, from.guid, to.guid, way);
  // This host knows what it does; of others it knows that they take the cheaper whole way.
  std::set<unsigned> chosen;
  if (from.self) {
    chosen = chosen_ways(*node.forwarding(), to.index);
  } else {
    std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
    for (unsigned way = 0; way < routing::kWays; ++way) {
      if (!ways[way].whole || ways[way].cost > least) continue;
      if (ways[way].cost < least) chosen.clear();
      least = ways[way].cost;
      chosen.insert(way);
    }
    if (!host.configuration().routing.multipath && !chosen.empty()) chosen = {*chosen.begin()};
  }
  json::array result;
  for (unsigned way = 0; way < routing::kWays; ++way) {
    if (ways[way].hops.empty()) continue;
    json::array hops;
    for (const routing::Hop& hop : ways[way].hops) {
      const auto near = host_by_guid(node, hop.from), far = host_by_guid(node, hop.to);
      hops.push_back({{"from", near ? near->name : fabric::to_string(hop.from)},
                      {"out", port_number(hop.egress)},
                      {"to", far ? far->name : fabric::to_string(hop.to)},
                      {"in", port_number(hop.ingress)},
                      {"cost", hop.cost},
                      {"rate", hop.rate},
                      {"up", hop.up}});
    }
    result.push_back({{"way", way},
                      {"chosen", chosen.contains(way)},
                      {"whole", ways[way].whole},
                      {"lid", routing::lid_of(to.index, way).value()},
                      {"cost", ways[way].cost},
                      {"rate", ways[way].rate},
                      {"hops", std::move(hops)}});
  }
  return result;
}

json::object show_status(const Host& host) {
  const routing::Node& node = host.node();
  const auto state = node.forwarding();
  const auto view = node.view();
  std::uint64_t known = 0, reachable = 0;
  std::string assigner;
  for (const auto& other : node.hosts()) {
    ++known;
    if (other.self || other.reachable) ++reachable;
    if (other.assigner) assigner = other.name;
  }
  const auto cables = host.cables();
  const auto connected =
      std::count_if(cables.begin(), cables.end(), [](const auto& cable) { return cable.connected; });
  json::array points;
  for (const std::string& point : single_points_of_failure(node.hosts(), node.cables()))
    points.push_back(text(point));
  const auto& settings = node.settings();
  const auto& network = host.configuration().network;
  return {{"host",
           {{"name", settings.name},
            {"guid", to_string(settings.guid)},
            {"index", state->self.value()},
            {"lid", routing::lid_of(state->self, 0).value()},
            {"lmc", routing::kLmc},
            {"incarnation", settings.incarnation},
            {"addresses", addresses_of(host.configuration(), state->self)}}},
          {"interface", {{"name", network.interface}, {"mtu", network.mtu}}},
          {"generation", view.generation},
          {"settled", view.settled},
          {"drained", host.drained()},
          {"single_points_of_failure", std::move(points)},
          {"map", fmt::format("{:016x}", view.map)},
          {"assigner", assigner},
          {"hosts", {{"known", known}, {"reachable", reachable}}},
          {"cables", {{"total", cables.size()}, {"connected", connected}}},
          {"failover", host.last_failover() ? json::value(to_json(*host.last_failover())) : nullptr}};
}

json::object show_hosts(const Host& host, const Request& request) {
  request.only({"host"});
  const routing::Node& node = host.node();
  std::vector<routing::HostView> wanted = node.hosts();
  if (const auto word = request.text("host")) wanted = {find_host(node, host.configuration(), *word)};
  std::sort(wanted.begin(), wanted.end(), [](const auto& a, const auto& b) {
    return std::tie(a.index, a.guid) < std::tie(b.index, b.guid);
  });
  const auto state = node.forwarding();
  json::array hosts;
  for (const auto& other : wanted) {
    json::array prefixes;
    for (const auto& prefix : other.prefixes) prefixes.push_back(text(to_string(prefix)));
    json::object entry{{"name", other.name},
                       {"guid", to_string(other.guid)},
                       {"index", other.index.value()},
                       {"addresses", addresses_of(host.configuration(), other.index)},
                       {"self", other.self},
                       {"reachable", other.self || other.reachable},
                       {"assigner", other.assigner},
                       {"settled", other.settled},
                       {"critical", other.critical},
                       {"drained", other.drained},
                       {"priority", other.priority},
                       {"incarnation", other.incarnation},
                       {"prefixes", std::move(prefixes)},
                       {"sequence", other.sequence},
                       {"age_s", std::chrono::duration<double>(other.age).count()}};
    json::array ways;
    if (!other.self && other.index.value() < state->hosts.size()) {
      const auto chosen = chosen_ways(*state, other.index);
      const auto& route = state->hosts[other.index.value()];
      for (unsigned way = 0; way < routing::kWays; ++way) {
        const auto& here = route.ways[way];
        if (here.egress == kNoPort) continue;
        ways.push_back({{"way", way},
                        {"port", port_number(here.egress)},
                        {"hops", here.hops},
                        {"cost", here.cost},
                        {"whole", here.whole},
                        {"chosen", chosen.contains(way)}});
      }
    }
    entry["ways"] = std::move(ways);
    hosts.push_back(std::move(entry));
  }
  return {{"hosts", std::move(hosts)}};
}

json::object show_ports(const Host& host, const Request& request) {
  request.only({});
  json::array ports;
  for (const auto& cable : host.cables()) {
    const verbs::CableStatus& status = cable.status;
    const auto fact = [&](const char* name) {
      const auto found = status.link_layer_facts.find(name);
      return found == status.link_layer_facts.end() ? std::string() : found->second;
    };
    ports.push_back({{"port", cable.port.value() + 1},
                     {"device", status.device},
                     {"device_port", status.device_port},
                     {"driver", fact("driver")},
                     {"interface", fact("interface")},
                     {"link_layer", status.link_layer},
                     {"state", status.state},
                     {"guid", to_string(status.port_guid)},
                     {"gid", status.gid},
                     {"lid", status.lid.value()},
                     {"lmc", status.lmc},
                     {"rate", status.rate},
                     {"mtu", status.mtu}});
  }
  json::array ignored;
  for (const std::string& name : host.ignored_ports()) ignored.push_back(text(name));
  return {{"ports", std::move(ports)}, {"ignored", std::move(ignored)}};
}

json::object show_cables(const Host& host, const Request& request) {
  request.only({});
  const auto adjacencies = host.node().adjacencies();
  json::array cables;
  for (const auto& cable : host.cables()) {
    const verbs::CableStatus& status = cable.status;
    json::object entry{{"port", cable.port.value() + 1},
                       {"device", status.device},
                       {"device_port", status.device_port},
                       {"phase", text(word_of(status.phase))},
                       {"reason", status.reason},
                       {"connected", cable.connected},
                       {"seconds", seconds_since(cable.since)},
                       {"times_up", cable.times_up},
                       {"rate", status.rate},
                       {"mtu", status.mtu},
                       {"last_detector", cable.last_detector},
                       {"last_reason", cable.last_reason}};
    entry["neighbour"] = status.neighbour ? json::value{{"name", status.neighbour->name},
                                                        {"guid", to_string(status.neighbour->host)},
                                                        {"port", status.neighbour->port + 1},
                                                        {"incarnation", status.neighbour->incarnation}}
                                          : json::value(nullptr);
    const auto adjacency = std::find_if(adjacencies.begin(), adjacencies.end(),
                                        [&](const auto& view) { return view.port == cable.port; });
    entry["adjacency"] = adjacency == adjacencies.end() ? "down" : routing::to_string(adjacency->state);
    entry["cost"] = adjacency == adjacencies.end() ? 0 : adjacency->cost;
    json::object facts, counters;
    for (const auto& [key, value] : status.link_layer_facts) facts[key] = value;
    for (const auto& [key, value] : status.counters) counters[key] = value;
    entry["link_layer"] = status.link_layer;
    entry["facts"] = std::move(facts);
    entry["counters"] = std::move(counters);
    cables.push_back(std::move(entry));
  }
  return {{"cables", std::move(cables)}};
}

json::object show_routes(const Host& host, const Request& request) {
  request.only({"host"});
  const routing::Node& node = host.node();
  const auto state = node.forwarding();
  std::optional<Guid> only;
  if (const auto word = request.text("host")) only = find_host(node, host.configuration(), *word).guid;
  json::array routes;
  for (const auto& route : state->hosts) {
    if (route.guid == Guid{} || (only && route.guid != *only)) continue;
    const auto chosen = chosen_ways(*state, route.index);
    for (unsigned way = 0; way < routing::kWays; ++way) {
      const Lid lid = routing::lid_of(route.index, way);
      const bool self = route.index == state->self;
      const PortIndex egress =
          lid.value() < state->egress.size() ? state->egress[lid.value()] : PortIndex(kNoPort);
      if (!self && egress == kNoPort) continue;
      routes.push_back({{"lid", lid.value()},
                        {"host", route.name},
                        {"index", route.index.value()},
                        {"way", way},
                        {"self", self},
                        {"port", port_number(egress)},
                        {"cost", route.ways[way].cost},
                        {"hops", route.ways[way].hops},
                        {"whole", self || route.ways[way].whole},
                        {"chosen", self || chosen.contains(way)}});
    }
  }
  json::array prefixes;
  for (const auto& [prefix, index] : state->prefixes) {
    if (index.value() >= state->hosts.size()) continue;
    const auto& server = state->hosts[index.value()];
    if (only && server.guid != *only) continue;
    prefixes.push_back(
        {{"prefix", text(to_string(prefix))}, {"host", server.name}, {"index", index.value()}});
  }
  return {
      {"generation", state->generation}, {"routes", std::move(routes)}, {"prefixes", std::move(prefixes)}};
}

json::object show_gateway(const Host& host, const EventLog& events) {
  const auto state = host.node().forwarding();
  json::array defaults;
  for (const auto& other : host.node().hosts()) {
    for (const routing::Prefix& prefix : other.prefixes) {
      const bool ipv4 = is_ipv4(prefix);
      if (prefix.length != (ipv4 ? 96 : 0) || !other.reachable) continue;
      const bool chosen = std::find(state->prefixes.begin(), state->prefixes.end(),
                                    std::pair(prefix, other.index)) != state->prefixes.end();
      defaults.push_back({{"family", ipv4 ? "ipv4" : "ipv6"},
                          {"host", other.name},
                          {"index", other.index.value()},
                          {"self", other.self},
                          {"chosen", chosen}});
    }
  }
  json::array history;
  for (std::uint64_t number = events.first_number(); number < events.next_number(); ++number) {
    const LoggedEvent& event = *events.from(number);
    if (event.kind.starts_with("gateway-") || event.kind.starts_with("default-"))
      history.push_back(to_json(event));
  }
  json::object result{{"gateway", nullptr}, {"default_routes", std::move(defaults)}};
  if (const Gateway* gateway = host.gateway()) {
    result["gateway"] = gateway->view();
    json::object upstream;
    for (const bool ipv4 : {true, false}) {
      const DefaultRoute& route = host.default_route(ipv4);
      json::array hops;
      for (const IpAddress& hop : route.next_hops) hops.push_back(text(to_string(hop)));
      upstream[ipv4 ? "ipv4" : "ipv6"] = json::object{{"default_route", route.present},
                                                      {"next_hops", std::move(hops)},
                                                      {"answers", host.upstream_answers(ipv4)},
                                                      {"offered", host.originates(ipv4)}};
    }
    result["upstream"] = std::move(upstream);
    result["originate"] = host.configuration().gateway.originate_all ? "all" : "master";
  }
  result["history"] = std::move(history);
  return result;
}

json::object show_path(const Host& host, const Request& request) {
  request.only({"from", "to"});
  const routing::Node& node = host.node();
  const auto from_word = request.text("from"), to_word = request.text("to");
  if (!to_word) throw RequestError("a path needs two hosts: `fabricctl path h1 h3`");
  const routing::HostView from = from_word ? find_host(node, host.configuration(), *from_word)
                                           : *host_by_guid(node, node.settings().guid);
  const routing::HostView to = find_host(node, host.configuration(), *to_word);
  if (from.guid == to.guid) throw RequestError(fmt::format("from {} to itself there is no cable", from.name));
  json::array ways = ways_between(host, from, to);
  const bool reachable = std::any_of(
      ways.begin(), ways.end(), [](const json::value& way) { return way.as_object().at("whole").as_bool(); });
  json::object answer{
      {"from", from.name}, {"to", to.name}, {"reachable", reachable}, {"why", why(ways, node)}};
  // When it changed is known of this host's own traffic only.
  answer["seconds"] = nullptr;
  if (from.self && to.way_since != TimePoint{}) {
    answer["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch() -
                                                      to.way_since.time_since_epoch())
                            .count();
  }
  answer["ways"] = std::move(ways);
  return answer;
}

json::object show_counters(Host& host, const Request& request) {
  request.only({});
  const ForwarderCounters counters = host.forwarder().counters();
  json::object texts;
  for (const auto& figure : counters.host) texts[text(figure.name)] = text(figure.help);
  json::array ports;
  for (const auto& cable : host.cables()) {
    json::object entry{{"port", cable.port.value() + 1}};
    if (const auto found = counters.ports.find(cable.port); found != counters.ports.end()) {
      entry["data"] = figures(found->second);
      for (const auto& figure : found->second) texts[text(figure.name)] = text(figure.help);
    }
    const auto& control = cable.control;
    entry["control"] = {
        {"messages_sent", control.messages_sent}, {"messages_received", control.messages_received},
        {"bytes_sent", control.bytes_sent},       {"bytes_received", control.bytes_received},
        {"credits_sent", control.credits_sent},   {"heartbeats", control.heartbeats},
        {"failures", control.failures},           {"waits_for_credit", control.waits_for_credit}};
    json::object cable_counters;
    for (const auto& [key, value] : cable.status.counters) cable_counters[key] = value;
    entry["cable"] = std::move(cable_counters);
    ports.push_back(std::move(entry));
  }
  const auto view = host.node().view();
  return {{"host", figures(counters.host)},
          {"buffers", {{"total", counters.buffers}, {"free", counters.buffers_free}}},
          {"routing",
           {{"advertisements", view.advertisements},
            {"floods", view.floods},
            {"computations", view.computations},
            {"disagreements", view.disagreements}}},
          {"ports", std::move(ports)},
          {"texts", std::move(texts)}};
}

}  // namespace fabric::daemon
