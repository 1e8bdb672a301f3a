#include "tools/fabricctl/views.hpp"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <cstdlib>

#include "tools/fabricctl/table.hpp"
#include "tools/fabricctl/units.hpp"

namespace fabric::tools {

namespace json = boost::json;

std::string text_of(const json::object& object, const char* name) {
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : "";
}

double number_of(const json::object& object, const char* name) {
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_number() ? value->to_number<double>() : 0;
}

std::uint64_t count_of(const json::object& object, const char* name) {
  const auto* value = object.if_contains(name);
  json::error_code error;
  const auto count = value != nullptr ? value->to_number<std::uint64_t>(error) : 0;
  return error ? 0 : count;
}

bool flag_of(const json::object& object, const char* name) {
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_bool() && value->as_bool();
}

const json::object& object_of(const json::object& object, const char* name) {
  static const json::object empty;
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_object() ? value->as_object() : empty;
}

const json::array& array_of(const json::object& object, const char* name) {
  static const json::array empty;
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_array() ? value->as_array() : empty;
}

namespace {

std::string joined(const json::array& list, const char* separator) {
  std::string result;
  for (const auto& value : list) {
    if (!result.empty()) result += separator;
    result += value.as_string();
  }
  return result;
}

std::string port_of(const json::object& object, const char* name) {
  const auto port = count_of(object, name);
  return port == 0 ? "-" : std::to_string(port);
}

std::string number_text(const json::object& object, const char* name) {
  const auto number = count_of(object, name);
  return number == 0 ? "-" : std::to_string(number);
}

/// "port 2, 1 hop, cost 10" of a host's way.
Cell way_cell(const json::object& way) {
  const std::string text = fmt::format("port {}, {}, cost {}", port_of(way, "port"),
                                       show_count(count_of(way, "hops"), "hop"), count_of(way, "cost"));
  if (!flag_of(way, "whole")) return {text + ", cut", Colour::bad};
  return text;
}

/// "14:03:22.123456" of an RFC 3339 time.
std::string clock_of(const std::string& time) {
  const auto t = time.find('T');
  return t == std::string::npos ? time : time.substr(t + 1, 15);
}

Colour colour_of_level(const std::string& level) {
  if (level == "error" || level == "warning") return Colour::bad;
  return Colour::plain;
}

std::string fault_text(const json::object& failover) {
  const double published = number_of(failover, "published_us");
  return fmt::format(
      "{}, port {}, found by {}: {}; let go after {}, {}", show_ago(number_of(failover, "seconds_ago")),
      port_of(failover, "port"), text_of(failover, "detector"), text_of(failover, "reason"),
      show_microseconds(number_of(failover, "detached_us")),
      published > 0 ? "new ways after " + show_microseconds(published) : "no new ways were needed");
}

}  // namespace

std::string view_status(const json::object& answer, bool coloured) {
  std::string out;
  const auto line = [&](std::string_view name, std::string_view text, Colour colour = Colour::plain) {
    out += fmt::format("{}{}\n", paint(fmt::format("{:<12}", name), Colour::dim, coloured),
                       paint(text, colour, coloured));
  };
  const json::object& host = object_of(answer, "host");
  if (host.empty()) {
    line("host", "no adapter", Colour::bad);
  } else {
    const auto index = count_of(host, "index");
    line("host", index == 0
                     ? fmt::format("{}, no index yet, GUID {}", text_of(host, "name"), text_of(host, "guid"))
                     : fmt::format("{}, index {}, LIDs {} and {}, GUID {}", text_of(host, "name"), index,
                                   count_of(host, "lid"), count_of(host, "lid") + 1, text_of(host, "guid")));
    const json::object& interface = object_of(answer, "interface");
    line("interface", fmt::format("{}, MTU {}, {}", text_of(interface, "name"), count_of(interface, "mtu"),
                                  index == 0 ? "no address yet" : joined(array_of(host, "addresses"), ", ")));
    const json::object &cables = object_of(answer, "cables"), &hosts = object_of(answer, "hosts");
    const auto ratio = [](const json::object& object, const char* part, const char* whole) {
      return count_of(object, part) == count_of(object, whole) ? Colour::good : Colour::bad;
    };
    line("cables",
         fmt::format("{} of {} connected", count_of(cables, "connected"), count_of(cables, "total")),
         ratio(cables, "connected", "total"));
    line("hosts", fmt::format("{} of {} reachable", count_of(hosts, "reachable"), count_of(hosts, "known")),
         ratio(hosts, "reachable", "known"));
    line("routing",
         fmt::format("generation {}, {}, LIDs assigned by {}", count_of(answer, "generation"),
                     flag_of(answer, "settled") ? "settled" : "not settled",
                     text_of(answer, "assigner").empty() ? "nobody yet" : text_of(answer, "assigner")));
    const json::array& points = array_of(answer, "single_points_of_failure");
    if (points.empty() && count_of(hosts, "reachable") > 2)
      line("redundancy", "any one cable or host may fail", Colour::good);
    for (const auto& point : points) line("cut off", point.as_string(), Colour::bad);
    if (flag_of(answer, "drained")) line("drained", "others go round this host; `fabricctl undrain` ends it");
    const json::object& failover = object_of(answer, "failover");
    line("last fault", failover.empty() ? "none" : fault_text(failover));
  }
  line("fabricd",
       fmt::format("{}, up for {}", text_of(answer, "version"), show_age(number_of(answer, "uptime_s"))));
  const json::array& problems = array_of(answer, "problems");
  if (problems.empty()) line("problems", "none", Colour::good);
  for (const auto& problem : problems) line("problem", problem.as_string(), Colour::bad);
  return out;
}

std::string view_hosts(const json::object& answer, bool coloured) {
  Table table({"HOST", ">INDEX", "ADDRESS", "GUID", "STATE", "WAY", "OTHER WAY"});
  for (const auto& value : array_of(answer, "hosts")) {
    const json::object& host = value.as_object();
    const bool reachable = flag_of(host, "reachable");
    Cell state = flag_of(host, "self") ? Cell("this host")
                 : reachable           ? Cell("reachable", Colour::good)
                                       : Cell("unreachable", Colour::bad);
    if (flag_of(host, "assigner")) state.text += ", assigns LIDs";
    if (flag_of(host, "drained")) state.text += ", drained";
    if (flag_of(host, "critical")) state.text += ", others depend on it";
    // The chosen way first.
    std::vector<Cell> ways;
    for (const bool chosen : {true, false}) {
      for (const auto& way : array_of(host, "ways")) {
        if (flag_of(way.as_object(), "chosen") == chosen) ways.push_back(way_cell(way.as_object()));
      }
    }
    ways.resize(2, Cell("-"));
    const json::array& addresses = array_of(host, "addresses");
    table.row({{text_of(host, "name"), Colour::bold},
               number_text(host, "index"),
               addresses.empty() ? "-" : std::string(addresses.front().as_string()),
               text_of(host, "guid"),
               state,
               ways[0],
               ways[1]});
  }
  return table.render(coloured);
}

std::string view_ports(const json::object& answer, bool coloured) {
  Table table({">PORT", "DEVICE", "STATE", ">LID", "GUID", "GID", "RATE", ">MTU", "LINK LAYER", "DRIVER",
               "INTERFACE"});
  const auto or_none = [](std::string text) { return text.empty() ? "-" : text; };
  for (const auto& value : array_of(answer, "ports")) {
    const json::object& port = value.as_object();
    const std::string state = text_of(port, "state");
    table.row({port_of(port, "port"),
               fmt::format("{}/{}", text_of(port, "device"), count_of(port, "device_port")),
               {state, state == "Active" ? Colour::good : Colour::bad},
               number_text(port, "lid"),
               text_of(port, "guid"),
               text_of(port, "gid"),
               show_rate(count_of(port, "rate")),
               number_text(port, "mtu"),
               text_of(port, "link_layer"),
               or_none(text_of(port, "driver")),
               or_none(text_of(port, "interface"))});
  }
  std::string out = table.render(coloured);
  const json::array& ignored = array_of(answer, "ignored");
  if (!ignored.empty()) out += fmt::format("not used: {}\n", joined(ignored, ", "));
  return out;
}

namespace {

/// InfiniBand cables are subnets: who manages them since when, and how it goes.
std::string view_subnets(const json::object& answer, bool coloured) {
  Table table(
      {">PORT", "PORTS", "LIDS", "WIDTH", "LANE", "MANAGER", "SINCE", ">SWEEPS", ">ERRORS", "OTHER END"});
  bool any = false;
  for (const auto& value : array_of(answer, "cables")) {
    const json::object& cable = value.as_object();
    const json::object &facts = object_of(cable, "facts"), &counters = object_of(cable, "counters");
    if (text_of(cable, "link_layer") != "InfiniBand" || text_of(facts, "peer_port_guid").empty()) continue;
    any = true;
    const std::string manager = text_of(facts, "sm"), state = text_of(facts, "sm_state");
    table.row({port_of(cable, "port"),
               fmt::format("{}, {}", text_of(facts, "own_state"), text_of(facts, "peer_state")),
               fmt::format("{}, {}", text_of(facts, "own_lid"), text_of(facts, "peer_lid")),
               text_of(facts, "own_width"),
               text_of(facts, "own_lane_speed"),
               {manager.empty() ? state : manager, manager.empty() ? Colour::bad : Colour::good},
               show_age(std::strtod(text_of(facts, "sm_state_for_ms").c_str(), nullptr) / 1000),
               number_text(counters, "sweeps"),
               std::to_string(count_of(counters, "smp_errors") + count_of(counters, "smp_timeouts") +
                              count_of(counters, "mads_malformed") + count_of(counters, "mads_unsent")),
               fmt::format("{} port {}, {}", text_of(facts, "peer_description"), text_of(facts, "peer_port"),
                           text_of(facts, "peer_port_guid"))});
  }
  return any ? "\n" + table.render(coloured) : "";
}

}  // namespace

std::string view_cables(const json::object& answer, bool coloured) {
  Table table({">PORT", "DEVICE", "STATE", "NEIGHBOUR", ">COST", "RATE", ">MTU", "SINCE", "PREFIX"});
  std::string notes;
  for (const auto& value : array_of(answer, "cables")) {
    const json::object& cable = value.as_object();
    const json::object& neighbour = object_of(cable, "neighbour");
    const std::string phase = text_of(cable, "phase");
    const bool connected = flag_of(cable, "connected");
    table.row({port_of(cable, "port"),
               fmt::format("{}/{}", text_of(cable, "device"), count_of(cable, "device_port")),
               {connected ? fmt::format("{}, {}", phase, text_of(cable, "adjacency")) : phase,
                connected ? Colour::good : Colour::bad},
               neighbour.empty()
                   ? "-"
                   : fmt::format("{} port {}", text_of(neighbour, "name"), count_of(neighbour, "port")),
               number_text(cable, "cost"),
               show_rate(count_of(cable, "rate")),
               number_text(cable, "mtu"),
               show_age(number_of(cable, "seconds")),
               text_of(object_of(cable, "facts"), "prefix")});
    if (!connected && !text_of(cable, "reason").empty()) {
      notes += fmt::format("port {}: {}\n", port_of(cable, "port"), text_of(cable, "reason"));
    }
    if (const std::string slow = text_of(object_of(cable, "facts"), "slow_link"); !slow.empty())
      notes += fmt::format("port {}: {}\n", port_of(cable, "port"), slow);
    if (!text_of(cable, "last_reason").empty()) {
      notes += fmt::format("port {}: last lost by {}: {}\n", port_of(cable, "port"),
                           text_of(cable, "last_detector"), text_of(cable, "last_reason"));
    }
  }
  return table.render(coloured) + notes + view_subnets(answer, coloured);
}

std::string view_routes(const json::object& answer, bool coloured) {
  Table table({">LID", "HOST", ">WAY", ">PORT", ">HOPS", ">COST", "STATE"});
  for (const auto& value : array_of(answer, "routes")) {
    const json::object& route = value.as_object();
    if (flag_of(route, "self")) {
      table.row({number_text(route, "lid"),
                 {text_of(route, "host"), Colour::bold},
                 std::to_string(count_of(route, "way")),
                 "-",
                 "-",
                 "-",
                 "this host"});
      continue;
    }
    const Cell state = !flag_of(route, "whole")   ? Cell("cut", Colour::bad)
                       : flag_of(route, "chosen") ? Cell("in use", Colour::good)
                                                  : Cell("standby");
    table.row({number_text(route, "lid"),
               {text_of(route, "host"), Colour::bold},
               std::to_string(count_of(route, "way")),
               port_of(route, "port"),
               number_text(route, "hops"),
               number_text(route, "cost"),
               state});
  }
  std::string out = table.render(coloured);
  for (const auto& value : array_of(answer, "prefixes")) {
    out +=
        fmt::format("{} by {}\n", text_of(value.as_object(), "prefix"), text_of(value.as_object(), "host"));
  }
  return out;
}

std::string view_path(const json::object& answer, bool coloured) {
  const std::string from = text_of(answer, "from"), to = text_of(answer, "to");
  const json::array& ways = array_of(answer, "ways");
  if (ways.empty()) return fmt::format("{} to {}: no way is known\n", from, to);
  std::string out;
  // A host that one cable alone leads to has the same way twice.
  const bool single = ways.size() == 2 && ways[0].at("hops") == ways[1].at("hops");
  for (const bool chosen : {true, false}) {
    for (const auto& value : ways) {
      const json::object& way = value.as_object();
      if (single && &value != &ways.front()) continue;
      if (flag_of(way, "chosen") != chosen) continue;
      const bool whole = flag_of(way, "whole");
      out += fmt::format("{} to {}, {}: way {}, LID {}, {}, cost {}, {}\n",
                         paint(from, Colour::bold, coloured), paint(to, Colour::bold, coloured),
                         chosen  ? paint("in use", Colour::good, coloured)
                         : whole ? "the other way"
                                 : paint("cut", Colour::bad, coloured),
                         count_of(way, "way"), count_of(way, "lid"),
                         show_count(array_of(way, "hops").size(), "hop"), count_of(way, "cost"),
                         show_rate(count_of(way, "rate")));
      for (const auto& step : array_of(way, "hops")) {
        const json::object& hop = step.as_object();
        out += fmt::format("  {} port {} -> {} port {}{}\n", text_of(hop, "from"), port_of(hop, "out"),
                           text_of(hop, "to"), port_of(hop, "in"),
                           flag_of(hop, "up") ? "" : paint("  down", Colour::bad, coloured));
      }
    }
  }
  if (single) out += "there is no other way\n";
  const std::string why = text_of(answer, "why");
  if (why.empty() || single) return out;
  const auto* seconds = answer.if_contains("seconds");
  out += "why: " + why;
  if (seconds != nullptr && seconds->is_number())
    out += fmt::format("; for {}", show_age(number_of(answer, "seconds")));
  return out + '\n';
}

std::string view_counters(const json::object& answer, bool coloured, bool all) {
  const json::object& texts = object_of(answer, "texts");
  Table table({"COUNTER", ">VALUE", "MEANING"});
  const auto add = [&](const std::string& group, const json::object& figures) {
    for (const auto& figure : figures) {
      const std::string name(figure.key());
      const std::uint64_t value = count_of(figures, name.c_str());
      if (value == 0 && !all) continue;
      table.row({fmt::format("{} {}", group, name),
                 {std::to_string(value), name.starts_with("drop_") ? Colour::bad : Colour::plain},
                 {text_of(texts, name.c_str()), Colour::dim}});
    }
  };
  add("host", object_of(answer, "host"));
  add("buffers", object_of(answer, "buffers"));
  add("routing", object_of(answer, "routing"));
  for (const auto& value : array_of(answer, "ports")) {
    const json::object& port = value.as_object();
    for (const char* group : {"data", "control", "cable"}) {
      add(fmt::format("port {} {}", port_of(port, "port"), group), object_of(port, group));
    }
  }
  return table.render(coloured);
}

std::string view_doctor(const json::object& answer, bool coloured) {
  std::string out;
  for (const auto& value : array_of(answer, "findings")) {
    const json::object& finding = value.as_object();
    const std::string level = text_of(finding, "level");
    out += fmt::format("{} {}\n    shows as: {}\n    do: {}\n",
                       paint(level + ":", level == "note" ? Colour::plain : Colour::bad, coloured),
                       text_of(finding, "text"), text_of(finding, "evidence"), text_of(finding, "advice"));
  }
  if (flag_of(answer, "well")) out += paint("nothing is wrong", Colour::good, coloured) + "\n";
  return out;
}

std::string view_event(const json::object& event, bool coloured) {
  std::string out;
  if (const auto missed = count_of(event, "missed")) out += fmt::format("({} events missed)\n", missed);
  const std::string level = text_of(event, "level");
  return out +
         fmt::format("{} {} {}\n", clock_of(text_of(event, "time")),
                     paint(fmt::format("{:<16}", text_of(event, "kind")), colour_of_level(level), coloured),
                     text_of(event, "text"));
}

std::string view_log(const json::object& answer, bool coloured) {
  std::string out;
  for (const auto& event : array_of(answer, "events")) out += view_event(event.as_object(), coloured);
  return out;
}

std::string view_gateway(const json::object& answer, bool coloured) {
  std::string out;
  const auto line = [&](std::string_view name, std::string_view words, Colour colour = Colour::plain) {
    out += fmt::format("{}{}\n", paint(fmt::format("{:<12}", name), Colour::dim, coloured),
                       paint(words, colour, coloured));
  };
  const json::object& gateway = object_of(answer, "gateway");
  if (gateway.empty()) line("gateway", "not this host");
  for (const auto& value : array_of(gateway, "vrrp-instance")) {
    const json::object& router = value.as_object();
    const std::string family = text_of(router, "family"), state = text_of(router, "state");
    line(family,
         fmt::format("{}, {}: {}", state, show_ago(number_of(router, "since-s")), text_of(router, "reason")),
         state == "master" ? Colour::good : Colour::plain);
    if (const std::string fault = text_of(router, "fault"); !fault.empty()) line("", fault, Colour::bad);
    for (const auto& problem : array_of(router, "problems"))
      line("", std::string(problem.as_string()), Colour::bad);
    line("", fmt::format("VRID {}, priority {}, addresses {}", count_of(router, "vrid"),
                         count_of(router, "effective-priority"),
                         joined(array_of(router, "virtual-addresses"), ", ")));
    const json::object& lan = object_of(router, "lan");
    const std::string heard = text_of(lan, "last-adv-source");
    line("",
         fmt::format("LAN: {} {}, probes: {}, {}", text_of(lan, "interface"),
                     flag_of(lan, "up") ? "up" : "down", text_of(lan, "health"),
                     heard.empty() ? "no other heard"
                                   : fmt::format("heard {} with priority {} {} ago", heard,
                                                 count_of(lan, "last-adv-priority"),
                                                 show_microseconds(1e3 * number_of(lan, "last-adv-ms")))));
    for (const auto& other : array_of(object_of(router, "ring"), "peers")) {
      const json::object& peer = other.as_object();
      line("", fmt::format("ring: {} is {}, {}, priority {}, its LAN: {}", text_of(peer, "guid"),
                           flag_of(peer, "reachable") ? "reachable" : "not reachable", text_of(peer, "state"),
                           count_of(peer, "priority"), text_of(peer, "lan")));
    }
    const json::object& upstream = object_of(object_of(answer, "upstream"), family.c_str());
    const bool present = flag_of(upstream, "default_route"), answers = flag_of(upstream, "answers");
    line("",
         fmt::format("default route {}, {}",
                     present ? "by " + joined(array_of(upstream, "next_hops"), ", ") : "missing",
                     !answers                       ? "probes are not answered"
                     : flag_of(upstream, "offered") ? "offered to the ring"
                                                    : "not offered to the ring"),
         present && answers ? Colour::plain : Colour::bad);
  }
  Table table({"FAMILY", "DEFAULT BY", "USED"});
  for (const auto& value : array_of(answer, "default_routes")) {
    const json::object& offer = value.as_object();
    table.row({text_of(offer, "family"), text_of(offer, "host"), flag_of(offer, "chosen") ? "yes" : "no"});
  }
  out += "\n" + table.render(coloured);
  if (const json::array& history = array_of(answer, "history"); !history.empty()) {
    out += "\n";
    for (const auto& event : history) out += view_event(event.as_object(), coloured);
  }
  return out;
}

std::string view_echo(const json::object& reply, const std::string& host, std::uint64_t size) {
  const auto number = count_of(reply, "sequence") + 1;
  if (!flag_of(reply, "answered")) return fmt::format("no answer from {}: seq={}\n", host, number);
  return fmt::format("{} bytes from {}: seq={} hops={}{} time={:.3f} ms\n", size, text_of(reply, "from"),
                     number, count_of(reply, "hops"), flag_of(reply, "turned") ? " turned" : "",
                     number_of(reply, "round_trip_us") / 1e3);
}

std::string view_hop(const json::object& reply) {
  const auto number = count_of(reply, "sequence") + 1;
  if (!flag_of(reply, "answered")) return fmt::format("{:>2}  no answer\n", number);
  return fmt::format("{:>2}  {} port {}  {}{}\n", number, text_of(reply, "from"), port_of(reply, "in"),
                     show_microseconds(number_of(reply, "round_trip_us")),
                     flag_of(reply, "turned") ? "  turned round at a dead cable" : "");
}

std::string view_ping_summary(const json::object& answer) {
  const std::uint64_t sent = count_of(answer, "iterations"), lost = count_of(answer, "lost");
  std::string out = fmt::format("{} sent, {} answered, {} lost\n", sent, sent - lost, lost);
  if (lost == sent) return out;
  const json::object& latency = object_of(answer, "latency");
  // The figures are half round trips, as perftest's are; ping's are whole.
  return out + fmt::format("round trip min {} / typical {} / avg {} / max {}\n",
                           show_microseconds(2 * number_of(latency, "t_min_us")),
                           show_microseconds(2 * number_of(latency, "t_typical_us")),
                           show_microseconds(2 * number_of(latency, "t_avg_us")),
                           show_microseconds(2 * number_of(latency, "t_max_us")));
}

}  // namespace fabric::tools
