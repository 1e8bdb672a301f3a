// Files: the configuration, the state that survives a restart, the description of a lab. Any text is one, or
// is refused with an exception of the documented kind.
//
// Subjects: fabricd/configuration.cpp fabricd/addresses.cpp fabricd/state.cpp
#include <string_view>

#include "fabricd/configuration.hpp"
#include "fabricd/state.hpp"
#include "tests/fuzz/input.hpp"
#include "verbs/softhca/lab_file.hpp"

using namespace fabric;
using namespace fabric::daemon;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Configuration configuration = parse_configuration(text, "f");
    FUZZ_REQUIRE(configuration.host.priority <= 15 && configuration.host.name.size() <= 63);
    FUZZ_REQUIRE(configuration.network.mtu >= 1280 && configuration.network.mtu <= 65520);
    (void)configuration.ports.wanted("mlx5_0", 1);
    (void)configuration.ports.cost_of("mlx5_0", 1);
  } catch (const ConfigurationError&) {
  }
  try {
    const State state = decode_state(text);
    FUZZ_REQUIRE(encode_state(decode_state(encode_state(state))) == encode_state(state));
  } catch (const std::exception&) {
  }
  try {
    (void)softhca::parse_lab(text);
  } catch (const softhca::LabError&) {
  }
  for (const auto& prefix : {parse_prefix(text)})
    if (prefix) FUZZ_REQUIRE(parse_prefix(to_string(*prefix)) == prefix);
  if (const auto address = parse_address(text)) FUZZ_REQUIRE(parse_address(to_string(*address)) == address);
  return 0;
}
