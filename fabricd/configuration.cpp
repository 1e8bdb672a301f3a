// Reading the configuration file.
//
// There is no schema beside the code: a key is known because a Section was asked for it, so what is read,
// what is documented as an error and what is suggested cannot differ. When a Section has been read, every key
// in the file that nobody asked for is an error, with the nearest known key. All errors of a file are
// reported at once, in the order of their lines.
#include "fabricd/configuration.hpp"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>

#include "words/text.hpp"

namespace fabric::daemon {

namespace {

struct Complaint {
  toml::source_position where;
  std::string text;
};

class Complaints {
 public:
  explicit Complaints(std::string file) : file_(std::move(file)) {}

  void add(const toml::source_region& where, std::string text) {
    complaints_.push_back({where.begin, std::move(text)});
  }

  void raise() {
    if (complaints_.empty()) return;
    std::stable_sort(complaints_.begin(), complaints_.end(),
                     [](const auto& a, const auto& b) { return a.where < b.where; });
    std::string text;
    for (const auto& complaint : complaints_) {
      if (!text.empty()) text += '\n';
      text +=
          fmt::format("{}:{}:{}: {}", file_, complaint.where.line, complaint.where.column, complaint.text);
    }
    throw ConfigurationError(text);
  }

 private:
  std::string file_;
  std::vector<Complaint> complaints_;
};

std::string_view kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a text";
    case toml::node_type::integer:
      return "a whole number";
    case toml::node_type::floating_point:
      return "a number with a fraction";
    case toml::node_type::boolean:
      return "true or false";
    case toml::node_type::none:
    case toml::node_type::date:
    case toml::node_type::time:
    case toml::node_type::date_time:
      break;
  }
  return "a date or time";
}

/// "5ms" to nanoseconds. Nothing if it is not a whole number with one of the units us, ms, s.
std::optional<std::chrono::nanoseconds> parse_duration(std::string_view text) {
  std::int64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc{} || count < 0 || count > 1'000'000'000) return std::nullopt;
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (unit == "us") return std::chrono::microseconds(count);
  if (unit == "ms") return std::chrono::milliseconds(count);
  if (unit == "s") return std::chrono::seconds(count);
  return std::nullopt;
}

std::string show_duration(std::chrono::nanoseconds duration) {
  using namespace std::chrono_literals;
  if (duration % 1s == 0s) return fmt::format("{}s", duration / 1s);
  if (duration % 1ms == 0ms) return fmt::format("{}ms", duration / 1ms);
  return fmt::format("{}us", duration / 1us);
}

/// One table of the file while it is read. finish() complains about what nobody has asked for.
class Section {
 public:
  Section(const toml::table* table, std::string path, Complaints& complaints)
      : table_(table), path_(std::move(path)), complaints_(complaints) {}

  /// A table in this one; empty where the file has none.
  Section section(const std::string& key) {
    const toml::node* node = find(key);
    if (node != nullptr && !node->is_table()) {
      wrong_type(key, *node, "a table: write [" + full(key) + "]");
      node = nullptr;
    }
    return {node != nullptr ? node->as_table() : nullptr, full(key), complaints_};
  }

  [[nodiscard]] bool has(const std::string& key) const { return table_ != nullptr && table_->contains(key); }

  /// A text for which `accept` returns an empty string, or else what it should be.
  template <class Accept>
  void text(const std::string& key, Accept accept) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (!node->is_string()) return wrong_type(key, *node, "a text in quotes");
    judge(key, *node, accept(node->as_string()->get()));
  }

  /// A list of texts, each judged as in text().
  template <class Accept>
  void texts(const std::string& key, Accept accept) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (!node->is_array()) return wrong_type(key, *node, "a list of texts: [\"...\", \"...\"]");
    for (const auto& element : *node->as_array()) {
      if (!element.is_string()) {
        wrong_type(key, element, "a list of texts: [\"...\", \"...\"]");
      } else {
        judge(key, element, accept(element.as_string()->get()));
      }
    }
  }

  template <std::integral T>
  void integer(const std::string& key, T& value, T low, T high) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (!node->is_integer()) return wrong_type(key, *node, "a whole number");
    const std::int64_t number = node->as_integer()->get();
    if (std::cmp_less(number, low) || std::cmp_greater(number, high)) {
      return judge(key, *node, fmt::format("must be from {} to {}", low, high));
    }
    value = static_cast<T>(number);
  }

  void flag(const std::string& key, bool& value) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (!node->is_boolean()) return wrong_type(key, *node, "true or false");
    value = node->as_boolean()->get();
  }

  void duration(const std::string& key, std::chrono::nanoseconds& value, std::chrono::nanoseconds low,
                std::chrono::nanoseconds high) {
    text(key, [&](const std::string& word) -> std::string {
      const auto duration = parse_duration(word);
      if (!duration) return "must be a whole number with a unit: \"500us\", \"5ms\", \"1s\"";
      if (*duration < low || *duration > high) {
        return fmt::format("must be from \"{}\" to \"{}\"", show_duration(low), show_duration(high));
      }
      value = *duration;
      return "";
    });
  }

  /// All keys of the table, which are the operator's own words, with a whole number each.
  template <std::integral T, class Accept>
  void integers(std::map<std::string, T>& values, T low, T high, Accept accept) {
    if (table_ == nullptr) return;
    for (const auto& [key, node] : *table_) {
      const std::string word(key.str());
      if (const std::string complaint = accept(word); !complaint.empty()) {
        complaints_.add(key.source(), fmt::format("`{}`: {}", full(word), complaint));
      }
      integer(word, values[word], low, high);
    }
  }

  void complain(const std::string& key, const std::string& text) {
    if (const toml::node* node = find(key)) judge(key, *node, text);
  }

  void finish() {
    if (table_ == nullptr) return;
    for (const auto& [key, node] : *table_) {
      if (std::find(known_.begin(), known_.end(), key.str()) != known_.end()) continue;
      const std::string nearest = nearest_word(key.str(), known_);
      std::string hint = nearest.empty() ? fmt::format("known here: {}", fmt::join(known_, ", "))
                                         : fmt::format("did you mean `{}`?", nearest);
      complaints_.add(key.source(), fmt::format("unknown key `{}`; {}", full(std::string(key.str())), hint));
    }
  }

 private:
  const toml::node* find(const std::string& key) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.push_back(key);
    return table_ != nullptr ? table_->get(key) : nullptr;
  }
  [[nodiscard]] std::string full(const std::string& key) const {
    return path_.empty() ? key : path_ + "." + key;
  }
  void wrong_type(const std::string& key, const toml::node& node, const std::string& wanted) {
    complaints_.add(node.source(), fmt::format("`{}` must be {}, not {}", full(key), wanted, kind_of(node)));
  }
  void judge(const std::string& key, const toml::node& node, const std::string& complaint) {
    if (!complaint.empty()) complaints_.add(node.source(), fmt::format("`{}` {}", full(key), complaint));
  }

  const toml::table* table_;
  std::string path_;
  Complaints& complaints_;
  std::vector<std::string> known_;
};

std::string accept_port(const std::string& word) {
  const auto slash = word.find('/');
  const std::string number = slash == std::string::npos ? "1" : word.substr(slash + 1);
  const bool good = slash != 0 && !word.empty() && !number.empty() && number.size() <= 3 &&
                    number.find_first_not_of("0123456789") == std::string::npos && number[0] != '0';
  return good ? "" : "must be an adapter or a port of it: \"mlx5_0\", \"mlx5_0/1\"";
}

auto accept_prefix(routing::Prefix& prefix, bool ipv4) {
  return [&prefix, ipv4](const std::string& word) -> std::string {
    const auto parsed = parse_prefix(word);
    if (!parsed || is_ipv4(*parsed) != ipv4) {
      return ipv4 ? "must be an IPv4 network: \"10.88.0.0/16\""
                  : "must be an IPv6 network: \"fd88:fab::/64\"";
    }
    const unsigned host_bits = 128u - parsed->length;
    if (host_bits < 2 || host_bits > 120) return "must have from 2 to 120 bits left for hosts";
    prefix = *parsed;
    return "";
  };
}

auto accept_one_of(std::string& value, std::vector<std::string> words) {
  return [&value, words = std::move(words)](const std::string& word) -> std::string {
    if (std::find(words.begin(), words.end(), word) != words.end()) {
      value = word;
      return "";
    }
    const std::string nearest = nearest_word(word, words);
    return nearest.empty() ? fmt::format("must be one of: {}", fmt::join(words, ", "))
                           : fmt::format("does not know \"{}\"; did you mean \"{}\"?", word, nearest);
  };
}

auto append_to(std::vector<std::string>& list) {
  return [&list](const std::string& word) {
    list.push_back(word);
    return accept_port(word);
  };
}

void read_host(Section section, Configuration::Host& host) {
  section.text("name", [&](const std::string& name) -> std::string {
    if (name.empty() || name.size() > 63 || !is_printable(name) ||
        name.find_first_of(" /") != std::string::npos) {
      return "must have from 1 to 63 printable ASCII characters, without spaces or slashes";
    }
    host.name = name;
    return "";
  });
  section.integer<std::uint8_t>("priority", host.priority, 0, 15);
  section.integer<std::uint16_t>("index", host.index, 0, routing::kMaxHostIndex.value());
  section.finish();
}

/// The name of a network interface.
auto accept_interface(std::string& interface) {
  return [&interface](const std::string& name) -> std::string {
    if (name.empty() || name.size() > 15 || name == "." || name == ".." ||
        name.find_first_of(" \t\r\n/:%") != std::string::npos) {
      return "must be a name for a network interface, from 1 to 15 bytes";
    }
    interface = name;
    return "";
  };
}

void read_network(Section section, Configuration::Network& network) {
  section.text("interface", accept_interface(network.interface));
  section.integer<std::uint32_t>("mtu", network.mtu, 1280, 65520);
  section.text("ipv4", accept_prefix(network.ipv4, true));
  section.text("ipv6", accept_prefix(network.ipv6, false));
  section.texts("prefixes", [&](const std::string& word) -> std::string {
    const auto prefix = parse_prefix(word);
    if (!prefix) {
      return "must be networks without bits set behind their length: \"192.168.7.0/24\", \"2001:db8:7::/48\"";
    }
    network.prefixes.push_back(*prefix);
    return "";
  });
  section.flag("forwarding", network.forwarding);
  section.finish();
}

void read_timers(Section section, Configuration::Timers& timers) {
  using namespace std::chrono_literals;
  section.duration("heartbeat", timers.heartbeat, 1ms, 1s);
  section.duration("keepalive", timers.keepalive, 10ms, 10s);
  section.duration("dead", timers.dead, 30ms, 60s);
  if (timers.dead < 3 * timers.keepalive) {
    section.complain("dead", "must be at least three times `timers.keepalive`");
  }
  section.finish();
}

void read_ports(Section section, Configuration::Ports& ports) {
  section.texts("use", append_to(ports.use));
  section.texts("ignore", append_to(ports.ignore));
  section.section("cost").integers<std::uint32_t>(ports.cost, 1, 1'000'000, accept_port);
  section.finish();
}

void read_subnet(Section section, Configuration::Subnet& subnet) {
  section.text("m_key", [&](const std::string& word) -> std::string {
    std::uint64_t key = 0;
    if (word.starts_with("0x")) {
      const char* last = word.data() + word.size();
      const auto [end, error] = std::from_chars(word.data() + 2, last, key, 16);
      if (error != std::errc{} || end != last) key = 0;
    }
    if (key == 0) return "must be a hexadecimal number of 64 bits, and not 0: \"0x1f3a5c7e9b2d4f60\"";
    subnet.m_key = key;
    return "";
  });
  section.finish();
}

void read_forwarder(Section section, Configuration::Forwarder& forwarder) {
  using namespace std::chrono_literals;
  section.integer<std::uint32_t>("receive_buffers", forwarder.receive_buffers, 16, 16384);
  section.integer<std::uint32_t>("send_buffers", forwarder.send_buffers, 16, 16384);
  section.duration("spin", forwarder.spin, 0us, 1s);
  section.duration("reorder", forwarder.reorder, 1ms, 1s);
  section.finish();
}

/// "192.168.0.1/24": an address with the length of its network.
std::optional<Configuration::Gateway::Address> parse_interface_address(const std::string& word) {
  const auto slash = word.find('/');
  const auto address = parse_address(word.substr(0, slash));
  if (!address || slash == std::string::npos) return std::nullopt;
  const unsigned bits = is_ipv4(*address) ? 32 : 128;
  unsigned length = 0;
  const auto [end, error] = std::from_chars(word.data() + slash + 1, word.data() + word.size(), length);
  if (error != std::errc{} || end != word.data() + word.size() || length < 1 || length > bits) {
    return std::nullopt;
  }
  return Configuration::Gateway::Address{*address, static_cast<std::uint8_t>(128 - bits + length)};
}

void read_gateway(Section section, Configuration::Gateway& gateway) {
  using namespace std::chrono_literals;
  section.text("interface", accept_interface(gateway.interface));
  section.texts("addresses", [&](const std::string& word) -> std::string {
    const auto address = parse_interface_address(word);
    if (!address) {
      return "must be addresses with the length of their network: \"192.168.0.1/24\", \"2001:db8::1/64\"";
    }
    gateway.addresses.push_back(*address);
    return "";
  });
  section.integer<std::uint8_t>("vrid", gateway.vrid, 1, 255);
  section.integer<std::uint8_t>("priority", gateway.priority, 1, 255);
  section.integer<std::uint8_t>("version", gateway.version, 2, 3);
  if (gateway.version == 2) gateway.interval = 1s;
  section.duration("interval", gateway.interval, 10ms, 255s);
  if (gateway.version == 2 && gateway.interval % 1s != 0s) {
    section.complain("interval", "must be whole seconds with version 2, which cannot say less");
  } else if (gateway.version == 3 && (gateway.interval % 10ms != 0s || gateway.interval > 40950ms)) {
    section.complain("interval", "must be a multiple of \"10ms\" up to \"40950ms\" with version 3");
  }
  section.flag("preempt", gateway.preempt);
  section.duration("preempt_delay", gateway.preempt_delay, 0s, 1000s);
  section.flag("accept", gateway.accept);
  std::string word = "auto";
  section.text("checksum", accept_one_of(word, {"auto", "pseudo", "message"}));
  using Checksum = Configuration::Gateway::Checksum;
  gateway.checksum = word == "pseudo"    ? Checksum::pseudo
                     : word == "message" ? Checksum::message
                                         : Checksum::automatic;
  if (section.has("track")) gateway.track_ring = gateway.track_default_route = false;
  section.texts("track", [&](const std::string& name) -> std::string {
    if (name == "ring") return gateway.track_ring = true, "";
    if (name == "default_route") return gateway.track_default_route = true, "";
    return "must be some of: \"ring\", \"default_route\"";
  });
  word = "master";
  section.text("originate", accept_one_of(word, {"master", "all"}));
  gateway.originate_all = word == "all";
  section.texts("probe", [&](const std::string& text) -> std::string {
    const auto address = parse_address(text);
    if (!address) return "must be addresses: \"192.0.2.1\"";
    gateway.probe.push_back(*address);
    return "";
  });
  if (!gateway.interface.empty() && gateway.addresses.empty()) {
    section.complain("interface", "needs `gateway.addresses`, the virtual ones that the pair shares");
  } else if (gateway.interface.empty()) {
    section.complain("addresses", "needs `gateway.interface`, the one on the LAN");
  }
  section.finish();
}

void read(const toml::table& file, Configuration& configuration, Complaints& complaints) {
  Section top(&file, "", complaints);
  read_host(top.section("host"), configuration.host);
  read_network(top.section("network"), configuration.network);

  Section routing = top.section("routing");
  routing.flag("multipath", configuration.routing.multipath);
  routing.finish();

  read_timers(top.section("timers"), configuration.timers);
  read_ports(top.section("ports"), configuration.ports);
  read_subnet(top.section("subnet"), configuration.subnet);

  read_forwarder(top.section("forwarder"), configuration.forwarder);

  read_gateway(top.section("gateway"), configuration.gateway);

  Section log = top.section("log");
  log.text("level", accept_one_of(configuration.log.level, {"debug", "info", "warning", "error"}));
  log.finish();
  top.finish();
}

/// Whether `word` ("mlx5_0" or "mlx5_0/1") means this port.
bool means(std::string_view word, std::string_view device, unsigned number) {
  return word == device || word == fmt::format("{}/{}", device, number);
}

}  // namespace

bool Configuration::Ports::wanted(std::string_view device, unsigned number) const {
  const auto listed = [&](const std::vector<std::string>& list) {
    return std::any_of(list.begin(), list.end(),
                       [&](const std::string& word) { return means(word, device, number); });
  };
  return (use.empty() || listed(use)) && !listed(ignore);
}

std::uint32_t Configuration::Ports::cost_of(std::string_view device, unsigned number) const {
  for (const std::string& key : {fmt::format("{}/{}", device, number), std::string(device)}) {
    if (const auto found = cost.find(key); found != cost.end()) return found->second;
  }
  return 0;
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& known) {
  std::string nearest;
  std::size_t least = word.size() / 3 + 2;  // farther than this is another word, not a slip
  for (const std::string& candidate : known) {
    // Levenshtein's distance, one row at a time.
    std::vector<std::size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i + 1;
      for (std::size_t j = 0; j < candidate.size(); ++j) {
        const std::size_t substituted = diagonal + (word[i] == candidate[j] ? 0 : 1);
        diagonal = row[j + 1];
        row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, substituted});
      }
    }
    if (row.back() < least) {
      least = row.back();
      nearest = candidate;
    }
  }
  return nearest;
}

Configuration parse_configuration(std::string_view text, const std::string& name) {
  Configuration configuration;
  Complaints complaints(name);
  try {
    const toml::table file = toml::parse(text, name);
    read(file, configuration, complaints);
  } catch (const toml::parse_error& error) {
    complaints.add(error.source(), fmt::format("not TOML: {}", error.description()));
  }
  complaints.raise();
  return configuration;
}

Configuration load_configuration(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    throw ConfigurationError(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  }
  return parse_configuration(text.str(), path);
}

}  // namespace fabric::daemon
