// fabricd: the command line.
#include <CLI/CLI.hpp>
#include <string>

int main(int argc, char** argv) {
  CLI::App app{
      "fabricd makes one network of hosts whose RDMA adapters are cabled in a ring, without a switch.\n"
      "One fabricd runs on each host; it needs no configuration. `fabricctl` shows and steers it."};
  std::string config, state = "/var/lib/fabricd", socket = "/run/fabricd/fabricd.sock";
  bool check = false;
  app.add_option("--config", config, "Configuration file (TOML); without it every value has its default.")
      ->type_name("FILE");
  app.add_flag("--check", check, "Check the configuration, say what is wrong with it, and exit.");
  app.add_option("--state", state, "Directory for what must survive a restart.")
      ->type_name("DIR")
      ->capture_default_str();
  app.add_option("--socket", socket, "Where fabricctl finds this daemon.")
      ->type_name("PATH")
      ->capture_default_str();
  app.footer(
      "Examples:\n"
      "  fabricd                                   run with the defaults\n"
      "  fabricd --config fabricd.toml --check     check a configuration file before it is used\n");
  CLI11_PARSE(app, argc, argv);
  return 0;
}
