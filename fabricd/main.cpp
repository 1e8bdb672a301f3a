// fabricd: the command line.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "fabricd/daemon.hpp"

int main(int argc, char** argv) {
  CLI::App app{
      "fabricd makes one network of hosts whose RDMA adapters are cabled in a ring, without a switch.\n"
      "One fabricd runs on each host; it needs no configuration. `fabricctl` shows and steers it.",
      "fabricd"};
  fabric::daemon::DaemonOptions options;
  std::string config;
  bool check = false;
  app.add_option("--config", config,
                 "Configuration file (TOML); without it every value has its default.\n"
                 "Sections: host, network, routing, timers, ports, forwarder, log.")
      ->type_name("FILE");
  app.add_flag("--check", check, "Check the configuration, say what is wrong with it, and exit.");
  app.add_option("--state", options.state_directory, "Directory for what must survive a restart.")
      ->type_name("DIR")
      ->capture_default_str();
  app.add_option("--socket", options.socket, "Where fabricctl finds this daemon.")
      ->type_name("PATH")
      ->capture_default_str();
  app.set_version_flag("--version", "fabricd " FABRIC_VERSION);
  app.footer(
      "Examples:\n"
      "  fabricd                                   run with the defaults\n"
      "  fabricd --config fabricd.toml --check     check a configuration file before it is used\n\n"
      "docs/configuration.md describes every key. Exit status: 0 stopped by SIGTERM or SIGINT (or the check\n"
      "found nothing), 1 cannot run, 2 wrong usage or configuration.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  // Else rdma-core keeps what was made on an adapter that has been taken out.
  setenv("RDMAV_ALLOW_DISASSOC_DESTROY", "1", 1);
  try {
    if (!config.empty()) options.configuration = fabric::daemon::load_configuration(config);
    if (check) {
      fmt::print("{}: good\n", config.empty() ? "the defaults" : config);
      return 0;
    }
    fabric::daemon::run_daemon(options);
    return 0;
  } catch (const fabric::daemon::ConfigurationError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "fabricd: {}\n", error.what());
    return 1;
  }
}
