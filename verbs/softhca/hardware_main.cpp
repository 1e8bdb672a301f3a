// softhca: plays the hardware of a lab for programs that run with libsofthca.so preloaded.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>

#include "verbs/softhca/hardware.hpp"

int main(int argc, char** argv) {
  using namespace fabric::softhca;
  CLI::App app(
      "Plays the RDMA hardware of a lab: hosts, adapters, cables. Programs reach it through "
      "libsofthca.so; control.hpp describes the requests that its control socket takes.");
  std::string file;
  HardwareOptions options;
  app.add_option("--lab", file, "description of the lab (JSON)")->required();
  app.add_option("--socket", options.socket, "path of the socket; PATH.ctl is the control socket")
      ->required();
  app.add_option("--seed", options.seed, "for everything that is left to chance")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    std::ifstream stream(file);
    if (!stream) throw LabError("cannot be read");
    const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    options.lab = parse_lab(text);
  } catch (const LabError& problem) {
    std::fprintf(stderr, "softhca: %s: %s\n", file.c_str(), problem.what());
    return 2;
  }
  try {
    run_hardware(options);
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "softhca: %s\n", problem.what());
    return 1;
  }
  return 0;
}
