#include "fabricd/state.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

namespace fabric::daemon {

namespace {

constexpr int kSchema = 1;

[[noreturn]] void fail(const std::string& what, const std::filesystem::path& path, int error) {
  throw StateError(fmt::format("{} {}: {}", what, path.string(), std::strerror(error)));
}

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  [[nodiscard]] int number() const { return number_; }

 private:
  int number_;
};

Guid parse_guid(std::string_view text) {
  std::uint64_t value = 0;
  if (!text.starts_with("0x")) throw std::invalid_argument("a GUID begins with 0x");
  const auto [end, error] = std::from_chars(text.data() + 2, text.data() + text.size(), value, 16);
  if (error != std::errc{} || end != text.data() + text.size()) throw std::invalid_argument("not a GUID");
  return Guid(value);
}

}  // namespace

std::uint32_t next_start(std::uint32_t last, std::chrono::system_clock::time_point now) {
  if (last != 0) return last + 1;
  using Quarters = std::chrono::duration<std::int64_t, std::ratio<1, 4>>;
  const auto since_2020 = now - std::chrono::sys_days(std::chrono::year(2020) / 1 / 1);
  return static_cast<std::uint32_t>(
      std::max<std::int64_t>(1, std::chrono::duration_cast<Quarters>(since_2020).count()));
}

State decode_state(std::string_view text) {
  const auto json = boost::json::parse({text.data(), text.size()});
  const auto& file = json.as_object();
  if (file.at("schema").to_number<int>() != kSchema) throw std::invalid_argument("another version's file");
  State state;
  state.starts = file.at("starts").to_number<std::uint32_t>();
  if (const auto* drained = file.if_contains("drained")) state.drained = drained->as_bool();
  const auto& lids = file.at("lids").as_object();
  state.lids.version = lids.at("version").to_number<std::uint64_t>();
  std::set<HostIndex> taken;
  for (const auto& value : lids.at("entries").as_array()) {
    const auto& entry = value.as_object();
    // Damaged quotes make one entry of two, with what was between them as a key.
    if (entry.size() != 2) throw std::invalid_argument("an entry has other members than host and index");
    const HostIndex index(entry.at("index").to_number<std::uint16_t>());
    if (index == kNoHost || index > routing::kMaxHostIndex) throw std::invalid_argument("no such host index");
    if (!taken.insert(index).second) throw std::invalid_argument("two hosts have the same index");
    state.lids.entries.push_back({parse_guid(entry.at("host").as_string()), index});
  }
  std::sort(state.lids.entries.begin(), state.lids.entries.end());
  const auto same_host = [](const auto& a, const auto& b) { return a.host == b.host; };
  if (std::adjacent_find(state.lids.entries.begin(), state.lids.entries.end(), same_host) !=
      state.lids.entries.end()) {
    throw std::invalid_argument("a host is in it twice");
  }
  return state;
}

std::string encode_state(const State& state) {
  boost::json::array entries;
  for (const auto& entry : state.lids.entries) {
    entries.push_back({{"host", to_string(entry.host)}, {"index", entry.index.value()}});
  }
  const boost::json::object file{
      {"schema", kSchema},
      {"starts", state.starts},
      {"drained", state.drained},
      {"lids", {{"version", state.lids.version}, {"entries", std::move(entries)}}},
  };
  return boost::json::serialize(file) + "\n";
}

State StateDirectory::load() const {
  const auto path = directory_ / "state.json";
  std::ifstream file(path);
  if (!file) {
    if (errno == ENOENT) return {};
    fail("cannot read", path, errno);
  }
  std::ostringstream text;
  text << file.rdbuf();
  try {
    return decode_state(text.str());
  } catch (const std::exception& error) {
    std::error_code ignored;
    std::filesystem::rename(path, directory_ / "state.json.bad", ignored);
    throw StateError(fmt::format(
        "{} is damaged ({}); it is kept as state.json.bad, and the LIDs are learnt from the neighbours",
        path.string(), error.what()));
  }
}

void StateDirectory::save(const State& state) const {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  if (error) fail("cannot make the directory", directory_, error.value());
  const auto path = directory_ / "state.json", temporary = directory_ / "state.json.new";
  const std::string text = encode_state(state);
  {
    const Descriptor file(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (file.number() < 0) fail("cannot write", temporary, errno);
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t written = write(file.number(), text.data() + done, text.size() - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("cannot write", temporary, errno);
      done += static_cast<std::size_t>(written);
    }
    if (fsync(file.number()) != 0) fail("cannot write", temporary, errno);
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) fail("cannot replace", path, errno);
  const Descriptor directory(open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.number() >= 0) fsync(directory.number());
}

}  // namespace fabric::daemon
