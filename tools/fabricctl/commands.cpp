// The words before OBJECT are fabricctl's own options; the rest belongs to the object and is read by a parser
// of its own, which also writes the object's help. With -j, stdout has JSON in every case, errors included;
// what is for people then goes nowhere.
#include "tools/fabricctl/commands.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "tools/fabricctl/client.hpp"
#include "tools/fabricctl/perftest.hpp"
#include "tools/fabricctl/units.hpp"
#include "tools/fabricctl/views.hpp"
#include "tools/fabricctl/words.hpp"

namespace fabric::tools {

namespace json = boost::json;

namespace {

constexpr unsigned kPatience = 10;  ///< seconds until a daemon that says nothing counts as stuck
constexpr int kSchema = 1;

const char* const kHelp =
    R"(fabricctl - show and steer the fabric that fabricd makes of this host and its neighbours

Usage: fabricctl [-j] [-s SOCKET] OBJECT [show] [ARGUMENTS]

Objects
  status               this host at a glance; what is wrong, and the last fault
  host [HOST]          the hosts of the fabric and the ways to them
  port                 this host's ports
  cable                what is plugged into them, and how it came up
  route [HOST]         the forwarding table: LID to port, both ways to each host
  path [FROM] TO       the hops between two hosts, both ways, cost and rate
  trace HOST           the same, live: who answers at each hop, how fast
  gateway [handover]   the way out: who serves, why, both channels; or let the other one serve
  ping HOST            echoes over the fabric, without IP
  bw HOST | --all      bandwidth, in perftest's columns
  lat HOST             latency, in perftest's columns
  doctor               what is wrong, how that shows, and what to do; exit status 1 if anything is
  drain, undrain       take this host out gracefully: others go round it; and back
  counters [--all]     what was sent, relayed, turned round and dropped, and why
  log                  what has happened lately
  monitor              what happens, as it happens

Any unambiguous abbreviation of an object will do: `fabricctl st`, `fabricctl ca`. A HOST is a name, an address, a
GUID (0x...) or an index.

Options
  -j, --json           JSON on stdout; "schema" is its version
  -s, --socket SOCKET  fabricd's socket (default: $FABRICD_SOCKET, else /run/fabricd/fabricd.sock)
  -h, --help           this text; after an object, what it takes
  -V, --version

Examples
  fabricctl path h1 h3               which way do packets go, and which is the other one?
  fabricctl bw h3 -D 10 --min 90     does the way carry 90 Gbit/s? The exit status says it
  fabricctl -j status | jq .hosts    for scripts
  fabricctl monitor                  leave it running while you pull a cable

Exit status: 0 done, 1 failed (or a threshold was missed), 2 wrong usage, 3 no fabricd to ask.
)";

struct Invocation {
  bool json = false;
  bool coloured = false;
  std::string socket = default_socket();
  std::string object;
  std::vector<std::string> arguments;
};

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void print_json(const json::object& answer) {
  json::object line{{"schema", kSchema}};
  for (const auto& member : answer) line[member.key()] = member.value();
  print(json::serialize(line) + "\n");
}

/// The parser of one object's arguments.
class Arguments {
 public:
  Arguments(Invocation& invocation, const std::string& help, const std::string& examples)
      : invocation_(invocation), app_(help, "fabricctl " + invocation.object) {
    app_.add_flag("-j,--json", invocation.json, "JSON on stdout");
    app_.footer(examples);
  }
  CLI::App& app() { return app_; }

  /// False where help was asked for, and given. Throws UsageError.
  bool parse() {
    std::vector<std::string> words = invocation_.arguments;
    // The verb: there is one, which may be left out or abbreviated.
    if (!words.empty() && !words.front().empty() && std::string_view("show").starts_with(words.front())) {
      words.erase(words.begin());
    }
    std::reverse(words.begin(), words.end());  // as CLI11 wants it
    try {
      app_.parse(words);
      return true;
    } catch (const CLI::CallForHelp&) {
      print(app_.help());
      return false;
    } catch (const CLI::ParseError& error) {
      throw UsageError(
          fmt::format("{}; `fabricctl {} --help` says what it takes", error.what(), invocation_.object));
    }
  }

 private:
  Invocation& invocation_;
  CLI::App app_;
};

using Render = std::function<std::string(const json::object&)>;

/// Asks once and shows the answer.
int show(const Invocation& invocation, const json::object& args, const Render& render) {
  const json::object answer = Client(invocation.socket).ask(invocation.object, args, kPatience);
  if (invocation.json) {
    print_json(answer);
  } else {
    print(render(answer));
  }
  return kDone;
}

int plain(Invocation& invocation, const std::string& help, std::string (*view)(const json::object&, bool)) {
  Arguments arguments(invocation, help, "");
  if (!arguments.parse()) return kDone;
  return show(invocation, {}, [&](const json::object& answer) { return view(answer, invocation.coloured); });
}

int of_host(Invocation& invocation, const std::string& help, std::string (*view)(const json::object&, bool)) {
  Arguments arguments(invocation, help, "");
  std::string host;
  arguments.app().add_option("host", host, "Only this host: name, address, GUID or index");
  if (!arguments.parse()) return kDone;
  json::object args;
  if (!host.empty()) args["host"] = host;
  return show(invocation, args,
              [&](const json::object& answer) { return view(answer, invocation.coloured); });
}

/// Whether this host serves any address family.
bool serves(const json::object& answer) {
  const json::array& routers = array_of(object_of(answer, "gateway"), "vrrp-instance");
  return std::any_of(routers.begin(), routers.end(), [](const json::value& router) {
    return text_of(router.as_object(), "state") == "master";
  });
}

int gateway(Invocation& invocation) {
  Arguments arguments(
      invocation,
      "The gateway: who serves the virtual addresses, since when and why, and who offers a default route.",
      "Examples:\n  fabricctl gateway\n"
      "  fabricctl gateway handover     let the other gateway serve; returns when it does\n");
  std::string verb;
  arguments.app().add_option("verb", verb, "handover")->check(CLI::IsMember({"handover"}));
  if (!arguments.parse()) return kDone;
  if (verb.empty())
    return show(invocation, {},
                [&](const json::object& answer) { return view_gateway(answer, invocation.coloured); });
  Client client(invocation.socket);
  client.ask("gateway handover", {}, kPatience);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kPatience);
  for (json::object answer;; std::this_thread::sleep_for(std::chrono::milliseconds(10))) {
    answer = client.ask("gateway", {}, kPatience);
    if (!serves(answer)) {
      if (invocation.json) print_json(answer);
      return kDone;
    }
    if (std::chrono::steady_clock::now() > deadline)
      throw Failed("the other gateway has not taken over; `fabricctl gateway` says more");
  }
}

int path(Invocation& invocation) {
  Arguments arguments(invocation, "The hops between two hosts: the way that is in use, and the other one.",
                      "Examples:\n  fabricctl path h1 h3\n  fabricctl path h3        from this host\n");
  std::vector<std::string> hosts;
  arguments.app()
      .add_option("host", hosts, "[FROM] TO; FROM is this host if left out")
      ->required()
      ->expected(1, 2);
  if (!arguments.parse()) return kDone;
  json::object args{{"to", hosts.back()}};
  if (hosts.size() == 2) args["from"] = hosts.front();
  return show(invocation, args,
              [&](const json::object& answer) { return view_path(answer, invocation.coloured); });
}

int counters(Invocation& invocation) {
  Arguments arguments(invocation, "What was sent, relayed, turned round and dropped, and why.", "");
  bool all = false;
  arguments.app().add_flag("-a,--all", all, "Also those that are 0");
  if (!arguments.parse()) return kDone;
  return show(invocation, {},
              [&](const json::object& answer) { return view_counters(answer, invocation.coloured, all); });
}

int log(Invocation& invocation) {
  Arguments arguments(invocation, "What has happened lately, oldest first.", "");
  std::uint64_t count = 50;
  arguments.app()
      .add_option("-n", count, "Events to show")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  if (!arguments.parse()) return kDone;
  return show(invocation, {{"count", count}},
              [&](const json::object& answer) { return view_log(answer, invocation.coloured); });
}

int monitor(Invocation& invocation) {
  Arguments arguments(invocation,
                      "What happens, as it happens, until you stop it. With -j: one object a line.", "");
  if (!arguments.parse()) return kDone;
  Client(invocation.socket).ask("monitor", {}, 0, [&](const json::object& event) {
    if (invocation.json) {
      print_json(event);
    } else {
      print(view_event(event, invocation.coloured));
    }
  });
  return kDone;
}

int doctor(Invocation& invocation) {
  Arguments arguments(
      invocation,
      "What is wrong with this host's part of the fabric and with the fabric as it sees it. Takes a "
      "second, to see what counts up. Exit status 1 where something is wrong.",
      "");
  if (!arguments.parse()) return kDone;
  const json::object answer = Client(invocation.socket).ask("doctor", {}, kPatience);
  if (invocation.json) {
    print_json(answer);
  } else {
    print(view_doctor(answer, invocation.coloured));
  }
  return flag_of(answer, "well") ? kDone : kFailed;
}

/// Waits until nothing is relayed any more; false where it still is after `kDrainPatience`.
bool wait_until_idle(Client& client) {
  using namespace std::chrono_literals;
  constexpr std::chrono::milliseconds kDrainPatience = 10s, kQuiet = 300ms, kInterval = 50ms;
  const auto begin = std::chrono::steady_clock::now();
  auto changed = begin;
  for (std::uint64_t last = 0;; std::this_thread::sleep_for(kInterval)) {
    const std::uint64_t relayed =
        count_of(object_of(client.ask("counters", {}, kPatience), "host"), "frames_relayed");
    const auto now = std::chrono::steady_clock::now();
    if (std::exchange(last, relayed) != relayed) changed = now;
    if (now - changed >= kQuiet) return true;
    if (now - begin >= kDrainPatience) return false;
  }
}

int drain(Invocation& invocation) {
  const bool drained = invocation.object == "drain";
  Arguments arguments(
      invocation,
      drained ? "Takes this host out gracefully: the others go round it where they can, and nothing is "
                "lost. Returns when nothing is relayed here any more. Holds until `undrain`, over restarts."
              : "The others go through this host again.",
      "");
  if (!arguments.parse()) return kDone;
  Client client(invocation.socket);
  json::object answer = client.ask(invocation.object, {}, kPatience);
  const bool idle = !drained || wait_until_idle(client);
  if (drained) answer["idle"] = idle;
  if (invocation.json) {
    print_json(answer);
  } else if (!drained) {
    print("undrained: others go through this host again\n");
  } else if (idle) {
    print("drained: nothing is relayed here; it can be switched off\n");
  } else {
    print(flag_of(answer, "critical")
              ? "drained, but some hosts have no other way than through this one, and use it: `fabricctl "
                "status` names them\n"
              : "drained, but frames are still relayed here; see `fabricctl host` for who has not settled\n");
  }
  return idle ? kDone : kFailed;
}

int ping(Invocation& invocation) {
  Arguments arguments(invocation, "Echoes over the fabric, without IP.",
                      "Example:\n  fabricctl ping h3 -c 100 -i 0.01\n");
  std::string host;
  std::uint64_t count = 5, size = 64;
  double interval = 1;
  std::int64_t way = -1;
  arguments.app().add_option("host", host, "Name, address, GUID or index")->required();
  arguments.app()
      .add_option("-c,-n", count, "Echoes to send")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  arguments.app()
      .add_option("-i", interval, "Seconds between them")
      ->check(CLI::Range(0.0001, 3600.0))
      ->capture_default_str();
  arguments.app().add_option("-s", size, "Bytes")->check(CLI::Range(1, 65536))->capture_default_str();
  arguments.app().add_option("-w,--way", way, "0 or 1; the one in use if left out")->check(CLI::Range(0, 1));
  if (!arguments.parse()) return kDone;
  json::object args{{"host", host},
                    {"iterations", count},
                    {"size", size},
                    {"interval_us", static_cast<std::uint64_t>(interval * 1e6)}};
  if (way >= 0) args["way"] = way;
  const json::object answer = Client(invocation.socket).ask("ping", args, 0, [&](const json::object& reply) {
    if (!invocation.json) print(view_echo(reply, host, size));
  });
  if (invocation.json) {
    print_json(answer);
  } else {
    print(view_ping_summary(answer));
  }
  return count_of(answer, "lost") == count_of(answer, "iterations") ? kFailed : kDone;
}

int trace(Invocation& invocation) {
  Arguments arguments(invocation, "Who answers at each hop on the way to a host, and how fast. Live.", "");
  std::string host;
  std::int64_t way = -1;
  arguments.app().add_option("host", host, "Name, address, GUID or index")->required();
  arguments.app().add_option("-w,--way", way, "0 or 1; the one in use if left out")->check(CLI::Range(0, 1));
  if (!arguments.parse()) return kDone;
  json::object args{{"host", host}};
  if (way >= 0) args["way"] = way;
  bool arrived = false;
  const json::object answer = Client(invocation.socket).ask("trace", args, 0, [&](const json::object& reply) {
    arrived = arrived || flag_of(reply, "at_destination");
    if (!invocation.json) print(view_hop(reply));
  });
  if (invocation.json) print_json(answer);
  return arrived ? kDone : kFailed;
}

/// Those of the other hosts that can be reached now.
std::vector<std::string> reachable_hosts(const Invocation& invocation) {
  std::vector<std::string> hosts;
  const json::object answer = Client(invocation.socket).ask("host", {}, kPatience);
  for (const auto& value : array_of(answer, "hosts")) {
    const json::object& host = value.as_object();
    if (!flag_of(host, "self") && flag_of(host, "reachable")) hosts.push_back(text_of(host, "guid"));
  }
  if (hosts.empty()) throw Failed("no other host is reachable now");
  return hosts;
}

int bandwidth(Invocation& invocation) {
  Arguments arguments(
      invocation,
      "Bandwidth from this host to another over the fabric, counted there; in perftest's columns.",
      "Examples:\n"
      "  fabricctl bw h3                  20000 frames of 64 KiB\n"
      "  fabricctl bw h3 -D 10 -g         ten seconds, in Gbit/s\n"
      "  fabricctl bw --all --min 90      every other host; exit status 1 if one is below 90 Gbit/s\n");
  std::string host;
  bool all = false, gigabits = false;
  std::uint64_t size = 65536, iterations = 20000;
  double duration = 0, least = 0;
  std::int64_t way = -1;
  CLI::App& app = arguments.app();
  app.add_option("host", host, "Name, address, GUID or index");
  app.add_flag("-a,--all", all, "Every other host, one after the other");
  app.add_option("-s,--size", size, "Bytes of a frame")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("-n,--iters", iterations, "Frames to send")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("-D,--duration", duration, "Seconds, instead of a number of frames")
      ->check(CLI::Range(0.001, 86400.0));
  app.add_option("-w,--way", way, "0 or 1; the one in use if left out")->check(CLI::Range(0, 1));
  app.add_flag("-g,--report_gbits", gigabits, "Gbit/s instead of MiB/s");
  app.add_option("--min", least, "Gbit/s that the average must reach for exit status 0")
      ->check(CLI::PositiveNumber);
  if (!arguments.parse()) return kDone;
  if (host.empty() == !all) throw UsageError("name one host, or give --all");

  json::object args{{"size", size}, {"iterations", iterations}};
  if (duration > 0) args["duration_ms"] = static_cast<std::uint64_t>(std::max(1.0, duration * 1e3));
  if (way >= 0) args["way"] = way;
  json::array results;
  std::string warnings;
  bool good = true;
  Client client(invocation.socket);
  if (!invocation.json)
    print(perftest_rule() + "\n" + bandwidth_heading(gigabits) + (all ? "   Host\n" : "\n"));
  for (const std::string& target : all ? reachable_hosts(invocation) : std::vector<std::string>{host}) {
    args["host"] = target;
    json::object answer = client.ask("bw", args, 0);
    const json::object& figures = object_of(answer, "bandwidth");
    const double gbits = number_of(figures, "average_bytes_per_s") * 8 / 1e9;
    const double rate = number_of(answer, "rate") / 1e9;
    const bool enough = gbits >= least;
    good = good && enough && count_of(figures, "received_frames") > 0;
    if (!enough) {
      warnings += fmt::format("{}: {:.2f} Gbit/s is below the {:g} asked for\n", text_of(answer, "host"),
                              gbits, least);
    }
    const auto sent = count_of(figures, "sent_frames"), received = count_of(figures, "received_frames");
    if (received < sent) {
      warnings +=
          fmt::format("{}: {} of {} frames did not arrive\n", text_of(answer, "host"), sent - received, sent);
    }
    if (!invocation.json) {
      const BandwidthRow row{count_of(answer, "size"), received, number_of(figures, "peak_bytes_per_s"),
                             number_of(figures, "average_bytes_per_s"), number_of(figures, "messages_per_s")};
      print(bandwidth_row(row, gigabits) + (all ? "   " + text_of(answer, "host") : "") + "\n");
    }
    answer["share_of_rate"] = rate > 0 ? gbits / rate : 0;
    if (least > 0) answer["enough"] = enough;
    answer.stable_erase("schema");
    results.push_back(std::move(answer));
  }
  if (invocation.json) {
    print_json({{"results", std::move(results)}});
  } else {
    print(perftest_rule() + "\n");
    std::fputs(warnings.c_str(), stderr);
  }
  return good ? kDone : kFailed;
}

int latency(Invocation& invocation) {
  Arguments arguments(
      invocation,
      "Latency between this host and another over the fabric: half the round trip, in perftest's "
      "columns.",
      "Examples:\n"
      "  fabricctl lat h3 -n 10000\n"
      "  fabricctl lat h3 --max 50     exit status 1 if the typical latency is above 50 us\n");
  std::string host;
  std::uint64_t size = 64, iterations = 1000;
  double most = 0, duration = 0;
  std::int64_t way = -1;
  CLI::App& app = arguments.app();
  app.add_option("host", host, "Name, address, GUID or index")->required();
  app.add_option("-s,--size", size, "Bytes of a frame")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("-n,--iters", iterations, "Echoes to send")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("-D,--duration", duration, "Seconds, instead of a number of echoes")
      ->check(CLI::Range(0.001, 86400.0));
  app.add_option("-w,--way", way, "0 or 1; the one in use if left out")->check(CLI::Range(0, 1));
  app.add_option("--max,--min", most,
                 "Microseconds that the typical latency may have at most for exit status 0")
      ->check(CLI::PositiveNumber);
  if (!arguments.parse()) return kDone;
  json::object args{{"host", host}, {"size", size}};
  if (duration > 0) {
    args["duration_ms"] = static_cast<std::uint64_t>(std::max(1.0, duration * 1e3));
  } else {
    args["iterations"] = iterations;
  }
  if (way >= 0) args["way"] = way;
  Client client(invocation.socket);
  if (!invocation.json) print(perftest_rule() + "\n" + latency_heading() + "\n");
  json::object answer = client.ask("lat", args, 0);
  const json::object& figures = object_of(answer, "latency");
  const double typical = number_of(figures, "t_typical_us");
  const bool answered = count_of(figures, "samples") > 0;
  const bool enough = most == 0 || typical <= most;
  if (invocation.json) {
    if (most > 0) answer["enough"] = enough;
    print_json(answer);
  } else {
    const LatencyRow row{count_of(answer, "size"),
                         count_of(figures, "samples"),
                         number_of(figures, "t_min_us"),
                         number_of(figures, "t_max_us"),
                         typical,
                         number_of(figures, "t_avg_us"),
                         number_of(figures, "t_stdev_us"),
                         number_of(figures, "percentile_99_us"),
                         number_of(figures, "percentile_999_us")};
    print(latency_row(row) + "\n" + perftest_rule() + "\n");
    if (const auto lost = count_of(answer, "lost")) {
      fmt::print(stderr, "{} were not answered\n", show_count(lost, "echo"));
    }
    if (!enough)
      fmt::print(stderr, "{}: {:.2f} us is above the {:g} allowed\n", text_of(answer, "host"), typical, most);
  }
  return answered && enough ? kDone : kFailed;
}

const std::map<std::string, std::function<int(Invocation&)>> kObjects{
    {"status", [](Invocation& i) { return plain(i, "This host at a glance.", view_status); }},
    {"host",
     [](Invocation& i) { return of_host(i, "The hosts of the fabric and the ways to them.", view_hosts); }},
    {"port", [](Invocation& i) { return plain(i, "This host's ports.", view_ports); }},
    {"cable", [](Invocation& i) { return plain(i, "What is plugged in, and how it came up.", view_cables); }},
    {"route",
     [](Invocation& i) { return of_host(i, "The forwarding table: LID to port, both ways.", view_routes); }},
    {"path", path},
    {"gateway", gateway},
    {"trace", trace},
    {"ping", ping},
    {"bw", bandwidth},
    {"lat", latency},
    {"counters", counters},
    {"doctor", doctor},
    {"drain", drain},
    {"undrain", drain},
    {"log", log},
    {"monitor", monitor},
};

/// Takes fabricctl's own options off the front. False where help or the version was asked for, and given.
bool read_options(std::vector<std::string> words, Invocation& invocation) {
  std::size_t next = 0;
  for (; next < words.size() && words[next].starts_with('-'); ++next) {
    const std::string& word = words[next];
    if (word == "-j" || word == "--json" || word == "-json") {
      invocation.json = true;
    } else if (word == "-s" || word == "--socket") {
      if (++next == words.size()) throw UsageError(word + " needs the path of a socket");
      invocation.socket = words[next];
    } else if (word.starts_with("--socket=")) {
      invocation.socket = word.substr(9);
    } else if (word == "-h" || word == "--help") {
      print(kHelp);
      return false;
    } else if (word == "-V" || word == "--version") {
      print("fabricctl " FABRIC_VERSION "\n");
      return false;
    } else {
      throw UsageError(fmt::format("unknown option {}; `fabricctl --help` lists them", word));
    }
  }
  if (next == words.size()) {
    invocation.object = "status";
    return true;
  }
  if (words[next] == "help") {
    print(kHelp);
    return false;
  }
  invocation.arguments.assign(words.begin() + static_cast<std::ptrdiff_t>(next) + 1, words.end());
  // Known before anything can be wrong, so that a usage error is JSON too.
  for (const std::string& word : invocation.arguments) {
    invocation.json = invocation.json || word == "-j" || word == "--json";
  }
  std::vector<std::string> names;
  for (const auto& [name, run] : kObjects) names.push_back(name);
  invocation.object = complete_word(words[next], names, "object");
  return true;
}

int fail(const Invocation& invocation, const std::string& sentence, int status) {
  if (invocation.json) {
    print_json({{"error", sentence}});
  } else {
    fmt::print(stderr, "fabricctl: {}\n", sentence);
  }
  return status;
}

}  // namespace

int run_fabricctl(const std::vector<std::string>& arguments) {
  Invocation invocation;
  invocation.coloured = isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  try {
    if (!read_options(arguments, invocation)) return kDone;
    return kObjects.at(invocation.object)(invocation);
  } catch (const UsageError& error) {
    return fail(invocation, error.what(), kUsage);
  } catch (const NoDaemon& error) {
    return fail(invocation, error.what(), kNoDaemon);
  } catch (const std::exception& error) {
    return fail(invocation, error.what(), kFailed);
  }
}

}  // namespace fabric::tools
