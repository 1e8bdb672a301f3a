#include "verbs/softhca/sysfs.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <system_error>
#include <vector>

#include "verbs/softhca/session.hpp"

namespace fabric::softhca {
namespace {

std::vector<std::string_view> split(std::string_view path) {
  std::vector<std::string_view> parts;
  while (!path.empty()) {
    const std::size_t end = std::min(path.find('/'), path.size());
    if (end != 0) parts.push_back(path.substr(0, end));
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return parts;
}

// A number from 0 to limit - 1, or nothing.
std::optional<unsigned> index(std::string_view text, unsigned limit) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value >= limit) return std::nullopt;
  return value;
}

template <class... Arguments>
std::string format(const char* pattern, Arguments... arguments) {
  char text[128];
  std::snprintf(text, sizeof text, pattern, arguments...);
  return text;
}

std::string words(std::uint64_t guid) {
  return format("%04x:%04x:%04x:%04x", static_cast<unsigned>(guid >> 48),
                static_cast<unsigned>(guid >> 32 & 0xFFFF), static_cast<unsigned>(guid >> 16 & 0xFFFF),
                static_cast<unsigned>(guid & 0xFFFF));
}

std::string rate(const SharedPort& port) {
  const std::uint32_t width = port.active_width, speed = port.active_speed;
  const char* name = speed == 2    ? " DDR"
                     : speed == 4  ? " QDR"
                     : speed == 16 ? " FDR"
                     : speed == 32 ? " EDR"
                                   : "";
  return format("%.3g Gb/sec (%uX%s)\n", link_rate(width, speed), width == 1 ? 1 : 4, name);
}

std::optional<std::string> hca_file(const HcaDescription& hca, std::string_view name) {
  if (name == "node_type") return "1: CA\n";
  if (name == "fw_ver") return hca.firmware + "\n";
  if (name == "hw_rev") return format("%x\n", hca.hardware_version);
  if (name == "hca_type" || name == "board_id") return hca.board_id + "\n";
  if (name == "node_guid") return words(hca.node_guid) + "\n";
  if (name == "sys_image_guid") return words(hca.system_image_guid) + "\n";
  return std::nullopt;
}

std::optional<std::string> port_file(const SharedPort& port, std::string_view name) {
  static constexpr std::array kStates = {"NOP", "DOWN", "INIT", "ARMED", "ACTIVE"};
  static constexpr std::array kPhysical = {
      "<unknown>", "Sleep", "Polling", "Disabled", "PortConfigurationTraining", "LinkUp"};
  const std::uint32_t state = port.state, physical = port.phys_state;
  if (name == "lid") return format("0x%x\n", port.lid.load());
  if (name == "lid_mask_count") return format("%u\n", port.lmc.load());
  if (name == "sm_lid") return format("0x%x\n", port.sm_lid.load());
  if (name == "sm_sl") return format("%u\n", port.sm_sl.load());
  if (name == "state") return format("%u: %s\n", state, state < kStates.size() ? kStates[state] : "");
  if (name == "phys_state") {
    return format("%u: %s\n", physical, physical < kPhysical.size() ? kPhysical[physical] : "");
  }
  if (name == "rate") return rate(port);
  if (name == "cap_mask") return format("0x%08x\n", port.cap_mask.load());
  if (name == "link_layer") return "InfiniBand\n";
  return std::nullopt;
}

std::optional<std::string> table_file(const SharedPort& port, std::string_view table,
                                      std::string_view entry) {
  if (table == "gids") {
    const auto number = index(entry, kMaxGids);
    if (!number) return std::nullopt;
    const std::uint64_t guid = port.guids[*number];
    return words(guid == 0 ? 0 : port.gid_prefix.load()) + ":" + words(guid) + "\n";
  }
  if (table == "pkeys") {
    const auto number = index(entry, kMaxPkeys);
    if (!number) return std::nullopt;
    return format("0x%04x\n", port.pkeys[*number].load());
  }
  if (table != "counters") return std::nullopt;
  for (const CounterFile& counter : kCounterFiles) {
    if (entry == counter.name) {
      return std::to_string((port.counters.*counter.source).load() / counter.divisor) + "\n";
    }
  }
  return std::nullopt;
}

}  // namespace

double link_rate(std::uint32_t width, std::uint32_t speed) {
  const double lanes = width == 1 ? 1 : width == 2 ? 4 : width == 4 ? 8 : width == 8 ? 12 : 2;
  const double per_lane = speed == 1    ? 2.5
                          : speed == 2  ? 5
                          : speed == 4  ? 10
                          : speed == 16 ? 14
                          : speed == 32 ? 25
                                        : 0;
  return lanes * per_lane;
}

std::optional<std::string> sysfs_contents(std::string_view path) {
  const std::vector<std::string_view> parts = split(path);
  if (parts.size() < 2) return std::nullopt;
  try {
    const Session& session = Session::get();
    const HcaDescription* hca = session.find_hca(std::string(parts[0]));
    if (hca == nullptr) return std::nullopt;
    if (parts.size() == 2) return hca_file(*hca, parts[1]);
    if (parts[1] != "ports" || parts.size() < 4) return std::nullopt;
    const auto number = index(parts[2], static_cast<unsigned>(hca->ports.size()) + 1);
    if (!number || *number == 0) return std::nullopt;
    const SharedPort& port = session.memory().ports[hca->ports[*number - 1]];
    if (parts.size() == 4) return port_file(port, parts[3]);
    if (parts.size() == 5 && parts[3] == "counters") Session::get().call({.call = Call::update_counters});
    if (parts.size() == 5) return table_file(port, parts[3], parts[4]);
    return std::nullopt;
  } catch (const std::system_error&) {
    return std::nullopt;
  }
}

}  // namespace fabric::softhca
