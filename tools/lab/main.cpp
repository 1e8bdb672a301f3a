// fabric-lab: labs of hosts on one machine, joined by the software HCA. The command line; lab.hpp says how it
// works.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "tools/lab/drill.hpp"
#include "tools/lab/error.hpp"
#include "tools/lab/gateway_drill.hpp"
#include "tools/lab/lab.hpp"
#include "tools/lab/quantity.hpp"
#include "tools/lab/status_text.hpp"

namespace json = boost::json;
using fabric::tools::lab::Error;
using fabric::tools::lab::Lab;
using fabric::tools::lab::parse_duration, fabric::tools::lab::parse_rate, fabric::tools::lab::parse_share;

namespace {

constexpr int kFailed = 1, kUsage = 2;

/// The cabling that --hosts and --shape ask for, in the lab's file format.
std::string shape_json(unsigned hosts, const std::string& shape) {
  if (shape == "ring") return fabric::tools::lab::to_json(fabric::tools::lab::ring(hosts));
  if (shape == "chain") return fabric::tools::lab::to_json(fabric::tools::lab::chain(hosts));
  std::ifstream file(shape, std::ios::binary);
  if (!file) throw Error("there is no file " + shape + ": --shape is ring, chain or a cabling file");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void print_json(const json::value& value) {
  std::cout << json::serialize(value) << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "fabric-lab makes labs: hosts in network namespaces, cabled over the software HCA, with fabricd on "
      "each.\n"
      "FABRIC_LAB in the environment names the lab (default: lab); labs of different names do not meet."};
  app.require_subcommand(1);
  app.fallthrough();
  bool as_json = false;
  app.add_flag("-j,--json", as_json, "Print JSON.");

  unsigned hosts = 5;
  std::string shape = "ring", config;
  bool no_fabricd = false, lan = false;
  double timeout = 30;
  auto* up = app.add_subcommand("up", "Bring a lab up; return when every host reaches every other.");
  up->add_option("--hosts", hosts, "Number of hosts.")->capture_default_str();
  up->add_option("--shape", shape,
                 "ring (cable hK port 2 to hK+1 port 1), chain (a ring without its last cable), or a file:\n"
                 "{\"hosts\": [{\"name\": \"h1\", \"hcas\": [{\"ports\": 2}]}, ...], \"cables\": [[\"h1/2\", "
                 "\"h2/1\"], ...]}")
      ->capture_default_str();
  up->add_option("--config", config,
                 "Folder with configurations of fabricd: HOST.toml, or fabricd.toml for the rest.")
      ->check(CLI::ExistingDirectory);
  up->add_flag(
      "--lan", lan,
      "With a LAN that the first two hosts are the gateway of, a host 'upstream' on it, and a guest g1..gN "
      "behind every host.");
  up->add_flag("--no-fabricd", no_fabricd, "Hosts and hardware only.");
  up->add_option("--timeout", timeout, "Seconds until it gives up.")->capture_default_str();

  auto* down = app.add_subcommand("down", "Remove everything of the lab, whatever state it is in.");
  auto* status = app.add_subcommand("status", "Show hosts and cables.");

  std::string host;
  std::vector<std::string> command;
  auto* exec =
      app.add_subcommand("exec", "Run a program on a host, with its software HCA: exec HOST -- COMMAND...");
  exec->add_option("host", host)->required();
  exec->add_option("command", command, "Program and arguments, after --.")->required();

  std::string a, b;
  bool silent = false;
  auto* cut =
      app.add_subcommand("cut", "Cut a cable, named by its two hosts or by its two ports (h1/2 h2/1).");
  auto* mend = app.add_subcommand("mend", "Put it in again.");
  for (auto* verb : {cut, mend}) {
    verb->add_option("a", a)->required();
    verb->add_option("b", b)->required();
  }
  auto* cut_silent = cut->add_flag("--silent", silent, "Without a port event: everything sent vanishes.");
  bool one_way = false;
  cut->add_flag("--one-way", one_way, "Only what goes from A to B vanishes; without a port event.")
      ->excludes(cut_silent);

  std::string flap_length = "50ms";
  auto* flap = app.add_subcommand("flap", "Take the link from a cable for a moment.");
  flap->add_option("a", a)->required();
  flap->add_option("b", b)->required();
  flap->add_option("--for", flap_length, "How long: 50ms, 2s.")->capture_default_str();

  std::string delay, limit, loss, corruption, bad_mads;
  auto* fault = app.add_subcommand(
      "fault",
      "Make a cable worse, in both directions (two hosts or ports), or for what one port sends (h1/2).\n"
      "What is not given is sound again: without options, all of it.");
  fault->add_option("a", a)->required();
  fault->add_option("b", b);
  fault->add_option("--delay", delay, "One way: 50us, 1ms (a long cable).");
  fault->add_option("--rate", limit, "No more than this: 10Gb, 500Mb (a slow link).");
  fault->add_option("--loss", loss, "Share of packets that vanish: 0.1%, 20ppm.");
  fault->add_option("--corrupt", corruption,
                    "Share of packets with bit errors: dropped and counted at the other end.");
  fault->add_option("--corrupt-mads", bad_mads,
                    "Share of MADs that arrive with wrong content (faulty firmware).");

  auto* kill = app.add_subcommand("kill", "Switch a host's power off: its processes die, its ports go dark.");
  auto* start = app.add_subcommand("start", "Switch it on again, and start its fabricd.");
  for (auto* verb : {kill, start}) verb->add_option("host", host)->required();
  unsigned adapter = 0;
  auto* remove =
      app.add_subcommand("remove", "Take an adapter out of a host; its cables stay plugged into it.");
  auto* insert = app.add_subcommand("insert", "Put it in again.");
  auto* reset = app.add_subcommand("reset", "A host's adapter fails, and its driver starts it anew.");
  for (auto* verb : {remove, insert, reset}) {
    verb->add_option("host", host)->required();
    verb->add_option("--adapter", adapter, "Its number in the host, from 0.")->capture_default_str();
  }
  kill->add_flag("--silent", silent, "The neighbours' ports keep their link.");

  fabric::tools::lab::DrillOptions drill_options;
  std::string drill_kind;
  auto* drill =
      app.add_subcommand("drill", "Traffic, a fault, its repair: what was lost, and how long the gap was.");
  drill
      ->add_option("kind", drill_kind,
                   "cable (cut and mended), host (a transit host dies and comes back), drain (it is "
                   "drained,\nswitched "
                   "off and on, and undrained) or gateway (the host that serves it fails)")
      ->required()
      ->check(CLI::IsMember({"cable", "host", "drain", "gateway"}));
  fabric::tools::lab::GatewayDrillOptions gateway_options;
  drill
      ->add_option(
          "--fault", gateway_options.faults,
          "gateway: kill, cut (LAN cable), silent (LAN port), handover; all of them in turn otherwise.")
      ->check(CLI::IsMember({"kill", "cut", "silent", "handover"}));
  drill->add_option("--runs", drill_options.runs, "How many, over all cables or hosts in turn.")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  auto* rate = drill->add_option("--rate", drill_options.rate, "Probes a second, of all flows together.")
                   ->capture_default_str()
                   ->check(CLI::Range(10, 1000000));
  drill->add_flag("--silent", drill_options.silent, "Faults without a port event.");

  app.footer(
      "Examples:\n"
      "  fabric-lab up --hosts 5                      five hosts in a ring\n"
      "  fabric-lab exec h1 -- ping h3                any program, on any host\n"
      "  fabric-lab exec h2 -- fabricctl status\n"
      "  fabric-lab cut h1 h2; fabric-lab mend h1 h2\n"
      "  fabric-lab fault h1 h2 --delay 50us --rate 10Gb --loss 0.1%\n"
      "  fabric-lab down");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;
  }

  try {
    if (geteuid() != 0) throw Error("needs root: it makes network namespaces (try sudo)");
    Lab lab(Lab::name_from_environment());
    if (up->parsed()) {
      Lab::UpOptions options;
      options.shape_json = shape_json(hosts, shape);
      if (!config.empty()) options.config = config;
      options.fabricd = !no_fabricd;
      options.lan = lan;
      options.timeout = std::chrono::milliseconds(static_cast<long>(timeout * 1000));
      std::cerr << "lab '" << lab.name() << "': starting" << std::endl;
      const double ready = lab.up(options).count();
      if (as_json) {
        json::array names;
        for (const auto& shape_of_host : lab.description().hosts) names.emplace_back(shape_of_host.name);
        print_json(json::object{{"schema", 1}, {"hosts", std::move(names)}, {"ready_ms", ready}});
      } else if (no_fabricd) {
        std::printf("%zu hosts up, without fabricd\n", lab.description().hosts.size());
      } else {
        std::printf("%zu hosts up, every pair reachable %.0f ms after the start of the first daemon\n",
                    lab.description().hosts.size(), ready);
      }
    } else if (down->parsed()) {
      const std::string reports = lab.down();
      std::cerr << reports;
      if (!reports.empty()) throw Error("a sanitizer has found something");
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (status->parsed()) {
      const std::string text = lab.status_json();
      std::cout << (as_json ? text + "\n" : fabric::tools::lab::status_text(text)) << std::flush;
    } else if (exec->parsed()) {
      lab.exec(host, command);
    } else if (cut->parsed() || mend->parsed()) {
      cut->parsed() ? lab.cut(a, b, silent, one_way) : lab.mend(a, b);
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (flap->parsed()) {
      lab.hardware().flap(a, b,
                          std::chrono::duration_cast<std::chrono::milliseconds>(parse_duration(flap_length)));
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (fault->parsed()) {
      fabric::tools::lab::Hardware::Faults faults;
      if (!delay.empty()) faults.delay = parse_duration(delay);
      if (!limit.empty()) faults.megabits = parse_rate(limit);
      if (!loss.empty()) faults.loss = parse_share(loss);
      if (!corruption.empty()) faults.corruption = parse_share(corruption);
      if (!bad_mads.empty()) faults.bad_mads = parse_share(bad_mads);
      lab.hardware().set_faults(a, b, faults);
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (remove->parsed() || insert->parsed() || reset->parsed()) {
      lab.hardware().change_adapter(app.get_subcommands().front()->get_name(), host, adapter);
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (kill->parsed()) {
      lab.kill(host, silent);
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (start->parsed()) {
      lab.start(host);
      if (as_json) print_json(json::object{{"schema", 1}});
    } else if (drill->parsed() && drill_kind == "gateway") {
      gateway_options.runs = drill_options.runs;
      if (rate->count() > 0) gateway_options.rate = std::max(1u, drill_options.rate / 2);
      unsigned number = 0;
      if (!as_json)
        std::printf("%4s %-9s %9s %6s %9s %6s   after the repair: lost from, to the LAN\n", "run", "fault",
                    "from[ms]", "lost", "to[ms]", "lost");
      const auto result = fabric::tools::lab::drill_gateway(lab, gateway_options, [&](const auto& run) {
        ++number;
        if (as_json) return;
        std::printf("%4u %-9s %9.1f %6lu %9.1f %6lu   %lu %lu\n", number, run.fault.c_str(),
                    run.from_lan.gap_ms, run.from_lan.lost, run.to_lan.gap_ms, run.to_lan.lost,
                    run.from_lan.lost_after_repair, run.to_lan.lost_after_repair);
        std::fflush(stdout);
      });
      std::cout << (as_json ? result.to_json() + "\n" : "\n" + result.to_text()) << std::flush;
    } else if (drill->parsed()) {
      using Kind = fabric::tools::lab::DrillOptions::Kind;
      drill_options.kind = drill_kind == "cable"  ? Kind::cable
                           : drill_kind == "host" ? Kind::host
                                                  : Kind::drain;
      unsigned number = 0;
      if (!as_json)
        std::printf("%4s %-16s %8s %6s %6s %6s %9s %-10s %s\n", "run", "fault", "sent", "lost", "dupl.",
                    "reord.", "gap[ms]", "detector", "held, dropped");
      const auto result = fabric::tools::lab::drill(lab, drill_options, [&](const auto& run) {
        ++number;
        if (as_json) return;
        std::string notes = run.held != 0 ? std::to_string(run.held) + " held" : "";
        for (const auto& [reason, frames] : run.dropped) notes += " " + reason + " " + std::to_string(frames);
        std::printf("%4u %-16s %8lu %6lu %6lu %6lu %9.2f %-10s %s\n", number, run.fault.c_str(), run.sent,
                    run.lost, run.duplicated, run.reordered, run.gap_ms, run.detector.c_str(), notes.c_str());
        std::fflush(stdout);
      });
      std::cout << (as_json ? result.to_json() + "\n" : "\n" + result.to_text()) << std::flush;
    }
  } catch (const std::exception& error) {
    std::cerr << "fabric-lab: " << error.what() << std::endl;
    return exec->parsed() && errno == ENOENT ? 127 : kFailed;
  }
  return 0;
}
