#include "tools/lab/drill.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#include "tools/fabricctl/client.hpp"
#include "tools/lab/addresses.hpp"
#include "tools/lab/drill_traffic.hpp"
#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;
using std::chrono::system_clock;

namespace {

constexpr auto kSettled = std::chrono::milliseconds(50);  ///< nothing more is relayed for so long
constexpr std::size_t kMaxFlows = 4;

/// What is to fail, and between whom traffic crosses it.
struct Target {
  std::string text;
  std::optional<unsigned> cable, host;               ///< index
  std::vector<std::pair<unsigned, unsigned>> flows;  ///< host indexes
  std::vector<unsigned> witnesses;                   ///< hosts that lose a cable
};

/// Ordered pairs that have to go another, longer way without the cable or host; nothing where one of them
/// would be cut off altogether.
std::vector<std::pair<unsigned, unsigned>> crossing(const LabDescription& lab, std::optional<unsigned> cable,
                                                    std::optional<unsigned> host) {
  std::vector<std::pair<unsigned, unsigned>> pairs;
  for (unsigned from = 0; from < lab.hosts.size(); ++from)
    for (unsigned to = from + 1; to < lab.hosts.size(); ++to) {
      if (from == host || to == host) continue;
      const auto before = distance(lab, from, to), after = distance(lab, from, to, cable, host);
      if (!before) continue;
      if (!after) return {};
      if (*after > *before) {
        pairs.emplace_back(from, to);
        pairs.emplace_back(to, from);
      }
    }
  // Neighbours of the fault first: they are the ones that turn frames round.
  std::stable_sort(pairs.begin(), pairs.end(), [&](const auto& a, const auto& b) {
    return distance(lab, a.first, a.second) < distance(lab, b.first, b.second);
  });
  if (pairs.size() > kMaxFlows) pairs.resize(kMaxFlows);
  return pairs;
}

std::vector<Target> targets(const LabDescription& lab, DrillOptions::Kind kind) {
  std::vector<Target> found;
  if (kind == DrillOptions::Kind::cable) {
    for (unsigned i = 0; i < lab.cables.size(); ++i) {
      const auto& [a, b] = lab.cables[i];
      Target target{lab.to_string(a) + " - " + lab.to_string(b),
                    i,
                    std::nullopt,
                    crossing(lab, i, std::nullopt),
                    {a.host, b.host}};
      if (!target.flows.empty()) found.push_back(std::move(target));
    }
  } else {
    for (unsigned host = 0; host < lab.hosts.size(); ++host) {
      Target target{lab.hosts[host].name, std::nullopt, host, crossing(lab, std::nullopt, host), {}};
      std::set<unsigned> neighbours;
      for (const auto& [a, b] : lab.cables) {
        if (a.host == host && b.host != host) neighbours.insert(b.host);
        if (b.host == host && a.host != host) neighbours.insert(a.host);
      }
      target.witnesses.assign(neighbours.begin(), neighbours.end());
      if (!target.flows.empty()) found.push_back(std::move(target));
    }
  }
  if (found.empty())
    throw Error(kind == DrillOptions::Kind::cable ? "no cable of this lab has a longer way round it"
                                                  : "no host of this lab has a longer way round it");
  return found;
}

json::object ask(const Lab& lab, unsigned host, const std::string& object, const json::object& args) {
  return Client(lab.fabricd_socket(lab.description().hosts[host].name)).ask(object, args, 10);
}

/// Cables on the way that traffic takes now, as its source sees it; nothing where there is none.
std::optional<unsigned> hops(const Lab& lab, unsigned from, unsigned to) {
  const auto& hosts = lab.description().hosts;
  std::optional<unsigned> least;
  try {
    const json::object path = ask(lab, from, "path", {{"from", hosts[from].name}, {"to", hosts[to].name}});
    for (const json::value& way : path.at("ways").as_array()) {
      if (!way.at("chosen").as_bool() || !way.at("whole").as_bool()) continue;
      const auto count = static_cast<unsigned>(way.at("hops").as_array().size());
      least = std::min(least.value_or(count), count);
    }
  } catch (const Failed&) {    // it does not know the other now
  } catch (const NoDaemon&) {  // it is just starting
  }
  return least;
}

/// Which detector told the first of the witnesses, among what they have logged since `since`.
std::string winner(const Lab& lab, const std::vector<unsigned>& witnesses, system_clock::time_point since) {
  // The log's own time stamps: RFC 3339 in UTC with microseconds, so they compare as text.
  const auto stamp = std::chrono::floor<std::chrono::microseconds>(since);
  const auto seconds = std::chrono::floor<std::chrono::seconds>(stamp);
  std::string first = "~", detector;
  const std::string begin =
      fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06}Z", fmt::gmtime(seconds), (stamp - seconds).count());
  for (const unsigned host : witnesses) {
    const json::object log = ask(lab, host, "log", {{"count", 1000}});
    for (const json::value& event : log.at("events").as_array()) {
      if (event.at("kind") != "cable-down") continue;
      const auto time = json::value_to<std::string>(event.at("time"));
      const auto by = json::value_to<std::string>(event.at("facts").at("detector"));
      const bool own_finding = by == "event" || by == "completion" || by == "heartbeat";
      if (!own_finding || time < begin || time >= first) continue;
      first = time;
      detector = by;
    }
  }
  return detector;
}

/// The forwarders' counters, by host; of those that answer.
class Counts {
 public:
  explicit Counts(const Lab& lab) {
    for (const LabDescription::Host& host : lab.description().hosts) {
      try {
        answers_[host.name] = Client(lab.fabricd_socket(host.name)).ask("counters", {}, 10);
        json::object& figures = answers_[host.name].at("host").as_object();
        lab.namespace_of(host.name).visit([&] { figures["drop_kernel_queue"] = kernel_queue_drops(); });
      } catch (const Failed&) {
      } catch (const NoDaemon&) {  // it has no power now
      }
    }
  }

  [[nodiscard]] std::uint64_t host(const std::string& name, const std::string& counter) const {
    const auto answer = answers_.find(name);
    return answer == answers_.end() ? 0 : number(answer->second.at("host").as_object(), counter);
  }
  /// `port` as in a cable's end, from 1.
  [[nodiscard]] std::uint64_t port(const std::string& name, unsigned port, const std::string& counter) const {
    const auto answer = answers_.find(name);
    if (answer == answers_.end()) return 0;
    for (const json::value& entry : answer->second.at("ports").as_array()) {
      if (entry.at("port").to_number<unsigned>() == port && entry.as_object().contains("data"))
        return number(entry.at("data").as_object(), counter);
    }
    return 0;
  }
  [[nodiscard]] std::vector<std::string> drops(const std::string& name) const {
    std::vector<std::string> names;
    const auto answer = answers_.find(name);
    if (answer == answers_.end()) return names;
    for (const auto& figure : answer->second.at("host").as_object())
      if (figure.key().starts_with("drop_")) names.emplace_back(figure.key());
    return names;
  }

 private:
  /// What the kernel's queue in front of fab0 has dropped, in this thread's network namespace.
  static std::uint64_t kernel_queue_drops() {
    std::ifstream table("/proc/thread-self/net/dev");
    for (std::string line; std::getline(table, line);) {
      std::istringstream words(line);
      std::string name;
      if (!(words >> name) || name != "fab0:") continue;
      std::uint64_t figure = 0;
      for (int column = 0; column < 12; ++column) words >> figure;  // the fourth of what is sent
      return figure;
    }
    return 0;
  }
  static std::uint64_t number(const json::object& figures, const std::string& name) {
    const json::value* value = figures.if_contains(name);
    return value == nullptr ? 0 : value->to_number<std::uint64_t>();
  }
  std::map<std::string, json::object> answers_;
};

/// As fabricctl numbers it: over all adapters of the host.
unsigned port_number(const LabDescription& lab, const softhca::CableEnd& end) {
  const auto& hcas = lab.hosts[end.host].hcas;
  return std::accumulate(hcas.begin(), hcas.begin() + end.hca, end.port);
}

/// Frames that the dead host had acknowledged and not passed on. Its neighbours know: what their adapters had
/// acknowledged (sent) less what came out of it (received). What came out although its acknowledgement was
/// lost has been sent again, so that it shows as a duplicate somewhere.
std::uint64_t held_by(const LabDescription& lab, unsigned dead, const Counts& before, const Counts& after) {
  std::int64_t held = 0;
  const auto difference = [](std::uint64_t now, std::uint64_t then) {
    return static_cast<std::int64_t>(now) - static_cast<std::int64_t>(then);
  };
  for (const auto& [a, b] : lab.cables) {
    for (const auto& [near, far] : {std::pair(a, b), std::pair(b, a)}) {
      if (far.host != dead || near.host == dead) continue;
      const std::string& name = lab.hosts[near.host].name;
      const unsigned port = port_number(lab, near);
      held += difference(after.port(name, port, "sent_frames"), before.port(name, port, "sent_frames"));
      held -=
          difference(after.port(name, port, "received_frames"), before.port(name, port, "received_frames"));
    }
  }
  for (unsigned host = 0; host < lab.hosts.size(); ++host) {
    if (host == dead) continue;
    for (const char* again : {"drop_duplicate", "drop_late"})
      held += difference(after.host(lab.hosts[host].name, again), before.host(lab.hosts[host].name, again));
  }
  return static_cast<std::uint64_t>(std::max<std::int64_t>(held, 0));
}

/// By reason, over all hosts; one that has begun anew counts from there.
std::map<std::string, std::uint64_t> dropped_between(const LabDescription& lab, const Counts& before,
                                                     const Counts& after) {
  std::map<std::string, std::uint64_t> dropped;
  for (const LabDescription::Host& host : lab.hosts) {
    for (const std::string& reason : after.drops(host.name)) {
      if (reason == "drop_duplicate" || reason == "drop_late" || reason == "drop_multicast") continue;
      const std::uint64_t then = before.host(host.name, reason), now = after.host(host.name, reason);
      if (const auto frames = now >= then ? now - then : now; frames != 0) dropped[reason] += frames;
    }
  }
  return dropped;
}

DrillRun run_once(Lab lab, const Target& target, const DrillOptions& options) {
  const LabDescription& shape = lab.description();
  const auto ways_are = [&](std::optional<unsigned> cable, std::optional<unsigned> host) {
    return std::all_of(target.flows.begin(), target.flows.end(), [&](const auto& flow) {
      return hops(lab, flow.first, flow.second) == distance(shape, flow.first, flow.second, cable, host);
    });
  };
  const auto cable_end = [&](bool first) {
    const auto& [a, b] = shape.cables[*target.cable];
    return shape.to_string(first ? a : b);
  };
  const bool drains = options.kind == DrillOptions::Kind::drain;
  const auto way_round = [&] {
    await("the way round the fault", [&] { return ways_are(target.cable, target.host); });
  };
  const auto fail = [&] {
    if (target.cable) return lab.hardware().cut(cable_end(true), cable_end(false), options.silent);
    if (drains) {
      ask(lab, *target.host, "drain", {});
      way_round();
      // What is on the way through it has gone when nothing more is relayed.
      for (std::uint64_t before = 0, now = 1; before != now;) {
        before = Counts(lab).host(target.text, "frames_relayed");
        std::this_thread::sleep_for(kSettled);
        now = Counts(lab).host(target.text, "frames_relayed");
      }
    }
    lab.kill(target.text, options.silent);
  };
  const auto undrain = [&] {
    await("fabricd on " + target.text, [&] {
      try {
        ask(lab, *target.host, "undrain", {});
        return true;
      } catch (const Failed&) {  // it has no adapter yet
      } catch (const NoDaemon&) {
      }
      return false;
    });
  };
  Repair repair([&] {
    if (target.cable) return lab.hardware().mend(cable_end(true), cable_end(false));
    lab.start(target.text);
    if (drains) undrain();
  });
  await("traffic on the short way", [&] { return ways_are(std::nullopt, std::nullopt); });
  const Counts before(lab);
  std::vector<Endpoints> flows;
  for (const auto& [from, to] : target.flows)
    flows.push_back(
        {lab.namespace_of(shape.hosts[from].name), lab.namespace_of(shape.hosts[to].name), address4(to + 1)});
  Probes probes(flows, options.rate);
  Stream stream(flows.front());
  const auto flowing = [&](const std::string& when) {
    const auto mark = probes.mark();
    const std::uint64_t bytes = stream.received();
    await("traffic " + when, [&] { return probes.received_since(mark) && stream.received() > bytes; });
  };
  flowing("before the fault");

  repair.owe();
  const auto begin = system_clock::now();
  fail();
  flowing("after the fault");
  way_round();
  flowing("on the way round the fault");
  const std::string detector = drains ? "" : winner(lab, target.witnesses, begin);
  DrillRun run{target.text};
  if (target.host) run.held = held_by(shape, *target.host, before, Counts(lab));
  repair.pay();
  await("the short way after the repair", [&] { return ways_are(std::nullopt, std::nullopt); });
  flowing("after the repair");

  run.detector = detector;
  run.tcp_bytes = stream.finish();
  probes.finish();
  for (const FlowResult& flow : probes.results()) {
    run.sent += flow.sent;
    run.lost += flow.lost;
    run.duplicated += flow.duplicated;
    run.reordered += flow.reordered;
    run.gap_ms = std::max(run.gap_ms, std::chrono::duration<double, std::milli>(flow.longest_gap).count());
  }
  run.dropped = dropped_between(shape, before, Counts(lab));
  return run;
}

struct Totals {
  std::uint64_t sent = 0, lost = 0, duplicated = 0, reordered = 0, tcp_bytes = 0, held = 0, unexplained = 0;
  std::map<std::string, std::uint64_t> dropped;
  std::vector<double> gaps;
  std::map<std::string, std::uint64_t> detectors{{"event", 0}, {"completion", 0}, {"heartbeat", 0}};

  explicit Totals(const std::vector<DrillRun>& runs) {
    for (const DrillRun& run : runs) {
      sent += run.sent;
      lost += run.lost;
      duplicated += run.duplicated;
      reordered += run.reordered;
      tcp_bytes += run.tcp_bytes;
      held += run.held;
      unexplained += lab::unexplained(run);
      for (const auto& [reason, frames] : run.dropped) dropped[reason] += frames;
      gaps.push_back(run.gap_ms);
      if (!run.detector.empty()) ++detectors[run.detector];
    }
  }
};

const char* name_of(DrillOptions::Kind kind) {
  switch (kind) {
    case DrillOptions::Kind::cable:
      return "cable";
    case DrillOptions::Kind::host:
      return "host";
    case DrillOptions::Kind::drain:
      break;
  }
  return "drain";
}

/// In the plural, as in "10 silent cuts of a cable".
std::string what_of(const DrillOptions& options) {
  switch (options.kind) {
    case DrillOptions::Kind::cable:
      return options.silent ? "silent losses of a cable" : "losses of a cable";
    case DrillOptions::Kind::host:
      return options.silent ? "silent losses of a transit host" : "losses of a transit host";
    case DrillOptions::Kind::drain:
      break;
  }
  return "times a transit host was drained, off and on, and undrained";
}

}  // namespace

std::uint64_t unexplained(const DrillRun& run) {
  std::uint64_t explained = run.held;
  for (const auto& [reason, frames] : run.dropped) explained += frames;
  return run.lost > explained ? run.lost - explained : 0;
}

DrillResult drill(const Lab& lab, const DrillOptions& options,
                  const std::function<void(const DrillRun&)>& progress) {
  const std::vector<Target> choice = targets(lab.description(), options.kind);
  DrillResult result{options, {}};
  for (unsigned number = 0; number < options.runs; ++number) {
    result.runs.push_back(run_once(lab, choice[number % choice.size()], options));
    progress(result.runs.back());
  }
  return result;
}

std::string DrillResult::to_json() const {
  const Totals totals(runs);
  json::object detectors;
  for (const char* name : {"event", "completion", "heartbeat"}) detectors[name] = totals.detectors.at(name);
  json::object dropped;
  for (const auto& [reason, frames] : totals.dropped) dropped[reason] = frames;
  return json::serialize(json::object{{"schema", 1},
                                      {"kind", name_of(options.kind)},
                                      {"silent", options.silent},
                                      {"runs", runs.size()},
                                      {"sent", totals.sent},
                                      {"lost", totals.lost},
                                      {"duplicated", totals.duplicated},
                                      {"reordered", totals.reordered},
                                      {"gap_ms",
                                       {{"median", percentile(totals.gaps, 0.5)},
                                        {"p99", percentile(totals.gaps, 0.99)},
                                        {"max", percentile(totals.gaps, 1)}}},
                                      {"detector", std::move(detectors)},
                                      {"held", totals.held},
                                      {"dropped", std::move(dropped)},
                                      {"unexplained", totals.unexplained}});
}

std::string DrillResult::to_text() const {
  const Totals totals(runs);
  std::string text = fmt::format(
      "{} {}: {} probes sent, {} lost, {} duplicated, {} reordered; TCP {:.1f} MB, all right\n"
      "longest gap: median {:.2f} ms, 99th percentile {:.2f} ms, worst {:.2f} ms\n",
      runs.size(), what_of(options), totals.sent, totals.lost, totals.duplicated, totals.reordered,
      static_cast<double>(totals.tcp_bytes) / 1e6, percentile(totals.gaps, 0.5),
      percentile(totals.gaps, 0.99), percentile(totals.gaps, 1));
  if (options.kind != DrillOptions::Kind::drain) {
    text += fmt::format("first to notice: port event {}, failed completion {}, heartbeat {}\n",
                        totals.detectors.at("event"), totals.detectors.at("completion"),
                        totals.detectors.at("heartbeat"));
  }
  if (options.kind == DrillOptions::Kind::host)
    text += fmt::format("held by dead hosts (acknowledged, not passed on): {} frames\n", totals.held);
  for (const auto& [reason, frames] : totals.dropped) text += fmt::format("{}: {} frames\n", reason, frames);
  if (totals.unexplained != 0) text += fmt::format("lost without an explanation: {}\n", totals.unexplained);
  return text;
}

}  // namespace fabric::tools::lab
