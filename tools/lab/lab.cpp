#include "tools/lab/lab.hpp"

#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "tools/lab/addresses.hpp"
#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace fs = std::filesystem;
namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr const char* kRoot = "/run/fabric-lab";
constexpr int kDaemonNice = -10;  ///< what fabricd gives its data thread
/// How long daemons may take to leave in good order before `down` kills them. Sanitizers look for leaks then.
constexpr auto kGrace = milliseconds(10000);

std::string read_all(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_all(const fs::path& file, const std::string& text) {
  std::ofstream out(file, std::ios::binary);
  if (!(out << text).flush()) throw Error("cannot write " + file.string());
}

/// The folder that this program's binary is in: the others are next to it.
fs::path binaries() {
  return fs::read_symlink("/proc/self/exe").parent_path();
}

fs::path require_binary(const char* name) {
  const fs::path file = binaries() / name;
  if (!fs::exists(file))
    throw Error(file.string() +
                " is missing; build it: cmake --preset release && cmake --build --preset release");
  return file;
}

/// The runtime libraries of the sanitizers that this very program runs with (it is built like the others), if
/// any: they must come before every other library, also in programs that know nothing of them.
std::vector<std::string> sanitizer_runtimes() {
  std::vector<std::string> found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* list) {
        const std::string path = info->dlpi_name;
        if (path.find("/libasan.so") != std::string::npos || path.find("/libtsan.so") != std::string::npos)
          static_cast<std::vector<std::string>*>(list)->push_back(path);
        return 0;
      },
      &found);
  return found;
}

bool accepts_connections(const fs::path& socket_path) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.string().copy(address.sun_path, sizeof address.sun_path - 1);
  const bool accepted = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  close(fd);
  return accepted;
}

}  // namespace

// --- the lock

Lock::Lock(const fs::path& directory) : fd_(-1) {
  while (true) {
    fs::create_directories(directory);
    fd_ = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ >= 0) {
      if (flock(fd_, LOCK_EX) != 0) throw_system_error("cannot lock " + directory.string());
      // Whoever held it may have removed the folder, and another may have made it anew.
      struct stat held {
      }, there{};
      if (fstat(fd_, &held) == 0 && stat(directory.c_str(), &there) == 0 && held.st_ino == there.st_ino)
        return;
      close(fd_);
    } else if (errno != ENOENT) {
      throw_system_error("cannot open " + directory.string());
    }
  }
}

Lock::~Lock() {
  close(fd_);
}

// --- names and places

Lab::Lab(std::string name) : name_(std::move(name)), directory_(fs::path(kRoot) / name_) {
  const auto good = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; };
  if (name_.empty() || name_.size() > 16 || !std::all_of(name_.begin(), name_.end(), good))
    throw Error("'" + name_ +
                "' is no name for a lab: FABRIC_LAB is 1 to 16 letters, digits and underscores");
}

std::string Lab::name_from_environment() {
  const char* name = std::getenv("FABRIC_LAB");
  return name != nullptr && *name != '\0' ? name : "lab";
}

bool Lab::exists() const {
  return fs::exists(directory_ / "lab.json");
}

const LabDescription& Lab::description() const {
  if (!description_) {
    if (!exists())
      throw Error("there is no lab '" + name_ + "'; 'fabric-lab up' makes one (FABRIC_LAB names another)");
    description_ = softhca::parse_lab(read_all(directory_ / "lab.json"));
  }
  return *description_;
}

Lab::Options Lab::options() const {
  const json::value value = json::parse(read_all(directory_ / "options.json"));
  Options options{value.at("fabricd").as_bool(), value.at("lan").as_bool(), std::nullopt};
  if (!value.at("config").is_null()) options.config = std::string(value.at("config").as_string());
  return options;
}

std::optional<Lan> Lab::lan() const {
  if (!exists() || !options().lan) return std::nullopt;
  std::vector<std::string> hosts;
  for (const LabDescription::Host& host : description().hosts) hosts.push_back(host.name);
  return Lan(name_, std::move(hosts));
}

HostNamespace Lab::namespace_of(const std::string& host) const {
  return HostNamespace(name_ + "-" + host);
}

fs::path Lab::fabricd_socket(const std::string& host) const {
  return directory_of(host) / "fabricd.sock";
}

std::vector<HostNamespace> Lab::namespaces() const {
  // By looking, not by lab.json: it may be gone, or have been another.
  std::vector<HostNamespace> found;
  std::error_code none;
  for (const fs::directory_entry& entry : fs::directory_iterator("/run/netns", none))
    if (const std::string name = entry.path().filename(); name.rfind(name_ + "-", 0) == 0)
      found.emplace_back(name);
  return found;
}

void Lab::require_host(const std::string& host) const {
  std::string names;
  for (const LabDescription::Host& known : description().hosts) {
    if (known.name == host) return;
    names += (names.empty() ? "" : ", ") + known.name;
  }
  throw Error("there is no host '" + host + "' in lab '" + name_ + "', only " + names);
}

void Lab::require_powered(const std::string& host) const {
  if (!hardware().status().power[host])
    throw Error(host + " is off; 'fabric-lab start " + host + "' starts it");
}

// --- what runs on a host

std::map<std::string, std::string> Lab::environment_of(const std::string& host) const {
  std::string preload;
  const std::vector<std::string> runtimes = sanitizer_runtimes();
  for (const std::string& runtime : runtimes) preload += runtime + ":";
  preload += require_binary("libsofthca.so").string();
  if (const char* before = std::getenv("LD_PRELOAD"); before != nullptr && *before != '\0')
    preload += std::string(":") + before;
  const char* path = std::getenv("PATH");
  std::map<std::string, std::string> environment{
      {"FABRIC_LAB", name_},
      {kMark, name_ + "/" + host},
      {"LD_PRELOAD", preload},
      {"SOFTHCA_SOCKET", directory_ / "softhca.sock"},
      {"SOFTHCA_HOST", host},
      {"FABRICD_SOCKET", fabricd_socket(host)},
      {"PATH", binaries().string() + (path != nullptr ? std::string(":") + path : "")},
  };
  if (!runtimes.empty()) {
    // Reports of daemons go where `down` finds them. Strangers' leaks are not ours (spawn turns it on again).
    const std::string log = (directory_of(host) / "sanitizer").string();
    if (std::getenv("ASAN_OPTIONS") == nullptr)
      environment["ASAN_OPTIONS"] = "detect_leaks=0:log_path=" + log;
    if (std::getenv("UBSAN_OPTIONS") == nullptr)
      environment["UBSAN_OPTIONS"] = "print_stacktrace=1:log_path=" + log;
    if (std::getenv("TSAN_OPTIONS") == nullptr) environment["TSAN_OPTIONS"] = "log_path=" + log;
  }
  return environment;
}

void Lab::exec(const std::string& host, std::vector<std::string> arguments) {
  Command command;
  command.arguments = std::move(arguments);
  if (const auto lan = this->lan(); lan && lan->has(host)) {
    command.environment = {{"FABRIC_LAB", name_}, {kMark, name_ + "/" + host}};
  } else {
    require_host(host);
    require_powered(host);
    command.environment = environment_of(host);
  }
  command.enter = [&] { namespace_of(host).enter(host, directory_ / "hosts"); };
  execute(command);
}

std::optional<fs::path> Lab::configuration_of(const std::string& host) const {
  std::vector<fs::path> files;
  if (const auto config = options().config) files = {*config / (host + ".toml"), *config / "fabricd.toml"};
  files.push_back(directory_of(host) / "fabricd.toml");
  const auto found =
      std::find_if(files.begin(), files.end(), [](const fs::path& file) { return fs::exists(file); });
  return found != files.end() ? std::optional(*found) : std::nullopt;
}

void Lab::start_fabricd(const std::string& host) {
  require_host(host);
  const fs::path pid_file = directory_of(host) / "fabricd.pid";
  if (const auto running = read_pid_file(pid_file); running && alive(*running))
    throw Error("fabricd of " + host + " runs already, process " + std::to_string(running->pid));
  Command command;
  command.arguments = {require_binary("fabricd"), "--state", directory_of(host) / "state", "--socket",
                       fabricd_socket(host)};
  if (const auto file = configuration_of(host))
    command.arguments.insert(command.arguments.end(), {"--config", *file});
  command.environment = environment_of(host);
  if (auto at = command.environment.find("ASAN_OPTIONS"); at != command.environment.end())
    at->second = "log_path=" + (directory_of(host) / "sanitizer").string();
  command.log = directory_of(host) / "fabricd.log";
  command.enter = [&] {
    // In a session of its own the daemon is in a scheduling group of its own (sched(7), autogroup), where its
    // threads' nice values count among themselves only. This is the group's: as they would count on a host.
    std::ofstream("/proc/self/autogroup") << kDaemonNice;
    namespace_of(host).enter(host, directory_ / "hosts");
  };
  write_pid_file(pid_file, spawn(command));
}

// --- up

void Lab::make_folders(const UpOptions& options) {
  const LabDescription lab = softhca::parse_lab(options.shape_json);
  std::string hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
  std::vector<std::string> names;
  for (unsigned k = 1; k <= lab.hosts.size(); ++k) {
    const std::string& host = names.emplace_back(lab.hosts[k - 1].name);
    hosts += to_string(address4(k)) + " " + host + "\n" + to_string(address6(k)) + " " + host + "\n";
    fs::create_directories(directory_of(host) / "state");
  }
  json::object kept{{"schema", 1}, {"fabricd", options.fabricd}, {"lan", options.lan}, {"config", nullptr}};
  if (options.config) kept["config"] = fs::canonical(*options.config).string();
  write_all(directory_ / "options.json", json::serialize(kept));
  if (options.lan) {
    const Lan lan(name_, names);
    hosts += lan.hosts_lines();
    for (const std::string& host : names)
      write_all(directory_of(host) / "fabricd.toml", lan.configuration_of(host));
  }
  write_all(directory_ / "hosts", hosts);
  write_all(directory_ / "lab.json", options.shape_json);  // last: from now on the lab exists
}

void Lab::start_hardware() {
  Command command;
  command.arguments = {require_binary("softhca"), "--lab", directory_ / "lab.json", "--socket",
                       directory_ / "softhca.sock"};
  command.environment = {{"FABRIC_LAB", name_}, {kMark, name_ + "/"}};
  if (!sanitizer_runtimes().empty() && std::getenv("ASAN_OPTIONS") == nullptr)
    command.environment["ASAN_OPTIONS"] = "log_path=" + (directory_ / "sanitizer").string();
  command.log = directory_ / "softhca.log";
  const ProcessId process = spawn(command);
  write_pid_file(directory_ / "softhca.pid", process);
  const auto deadline = steady_clock::now() + kGrace;
  while (!accepts_connections(directory_ / "softhca.sock")) {
    if (!alive(process) || steady_clock::now() > deadline)
      throw Error("the hardware process did not come up; see " + command.log.string());
    std::this_thread::sleep_for(milliseconds(1));
  }
}

std::optional<std::string> Lab::dead_daemon() const {
  for (const LabDescription::Host& host : description().hosts) {
    const auto process = read_pid_file(directory_of(host.name) / "fabricd.pid");
    if (!process || !alive(*process)) return host.name;
  }
  return std::nullopt;
}

Reachability Lab::reachability() const {
  std::vector<Reachability::Member> members;
  for (unsigned k = 1; k <= description().hosts.size(); ++k) {
    const std::string& host = description().hosts[k - 1].name;
    members.push_back({host, {address4(k), address6(k)}, namespace_of(host)});
  }
  if (const auto lan = this->lan())
    for (const std::string& member : lan->members())
      members.push_back({member, lan->address_of(member), namespace_of(member)});
  return Reachability(std::move(members));
}

std::chrono::duration<double, std::milli> Lab::up(const UpOptions& options) {
  require_binary("softhca");
  require_binary("libsofthca.so");
  if (options.fabricd) require_binary("fabricd");
  {  // What is wrong is said before anything is made.
    std::vector<std::string> names;
    for (const auto& host : softhca::parse_lab(options.shape_json).hosts) names.push_back(host.name);
    if (options.lan) Lan(name_, std::move(names));
  }
  const Lock lock(directory_);
  if (exists() || !namespaces().empty())
    throw Error(
        "lab '" + name_ +
        "' is there already: 'fabric-lab status' shows it, 'fabric-lab down' removes it, and FABRIC_LAB "
        "names another");
  make_folders(options);
  for (const LabDescription::Host& host : description().hosts) namespace_of(host.name).make();
  if (const auto lan = this->lan()) lan->make();
  start_hardware();
  if (!options.fabricd) return {};

  Reachability reachability = this->reachability();
  const auto begin = steady_clock::now();
  for (const LabDescription::Host& host : description().hosts) start_fabricd(host.name);
  std::optional<std::string> dead;
  const bool ready =
      reachability.wait(begin + options.timeout, [&] { return (dead = dead_daemon()).has_value(); });
  const auto end = steady_clock::now();
  if (dead)
    throw Error("fabricd of " + *dead + " has ended; see " + (directory_of(*dead) / "fabricd.log").string());
  if (!ready) {
    std::string pairs;
    for (const std::string& pair : reachability.missing(8)) pairs += (pairs.empty() ? "" : ", ") + pair;
    throw Error(std::to_string(reachability.expected() - reachability.answered()) + " of " +
                std::to_string(reachability.expected()) + " pairs do not answer: " + pairs +
                ", ...; the logs are " + (directory_ / "*/fabricd.log").string());
  }
  return end - begin;
}

// --- down

void Lab::kill_members(const std::optional<std::string>& host) const {
  std::vector<ino_t> inodes;
  for (const HostNamespace& net : host ? std::vector{namespace_of(*host)} : namespaces())
    if (const auto inode = net.inode()) inodes.push_back(*inode);
  // Again and again: what is found may have forked meanwhile.
  for (auto members = find_members(name_, host, inodes); !members.empty();
       members = find_members(name_, host, inodes)) {
    for (const ProcessId& member : members) send_signal(member, SIGKILL);
    if (!wait_for_end(members, kGrace))
      throw Error("process " + std::to_string(members.front().pid) + " does not die");
  }
}

std::string Lab::down() {
  if (const char* mark = std::getenv(kMark); mark != nullptr && std::string(mark).rfind(name_ + "/", 0) == 0)
    throw Error("this shell is on a host of the lab; leave it first");
  const Lock lock(directory_);
  // In good order first, hardware last.
  std::vector<ProcessId> daemons;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_))
    if (const auto process = read_pid_file(entry.path() / "fabricd.pid")) daemons.push_back(*process);
  for (const ProcessId& daemon : daemons) send_signal(daemon, SIGTERM);
  wait_for_end(daemons, kGrace);
  if (const auto process = read_pid_file(directory_ / "softhca.pid")) {
    send_signal(*process, SIGTERM);
    wait_for_end({*process}, kGrace);
  }
  kill_members(std::nullopt);
  for (const HostNamespace& net : namespaces()) net.remove();
  std::string reports;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(directory_))
    if (entry.path().filename().string().rfind("sanitizer.", 0) == 0) reports += read_all(entry.path());
  fs::remove_all(directory_);
  std::error_code used_by_others;
  fs::remove(kRoot, used_by_others);
  return reports;
}

// --- faults

void Lab::cut(const std::string& a, const std::string& b, bool silent, bool one_way) const {
  using Fault = Lan::Fault;
  if (const auto lan = this->lan(); lan && (a == Lan::kSwitch || b == Lan::kSwitch)) {
    if (one_way) return b == Lan::kSwitch ? lan->cut(a, Fault::mute) : lan->cut(b, Fault::deaf);
    return lan->cut(b == Lan::kSwitch ? a : b, silent ? Fault::silent : Fault::carrier);
  }
  one_way ? hardware().cut_one_way(a, b) : hardware().cut(a, b, silent);
}

void Lab::mend(const std::string& a, const std::string& b) const {
  if (const auto lan = this->lan(); lan && (a == Lan::kSwitch || b == Lan::kSwitch))
    return lan->mend(b == Lan::kSwitch ? a : b);
  hardware().mend(a, b);
}

void Lab::kill(const std::string& host, bool silent) {
  require_host(host);
  const Lock lock(directory_);
  // Power first: what its processes still send on their way out must not leave the host.
  hardware().power_off(host, silent);
  const auto lan = this->lan();
  if (lan && lan->on_lan(host)) lan->cut(host, silent ? Lan::Fault::silent : Lan::Fault::carrier);
  kill_members(host);
  if (lan) kill_members(lan->guest_behind(host));
  // One that was dying already is no member any more, and holds its socket a moment longer.
  if (const auto daemon = read_pid_file(directory_of(host) / "fabricd.pid")) wait_for_end({*daemon}, kGrace);
}

void Lab::start(const std::string& host) {
  require_host(host);
  const Lock lock(directory_);
  if (!hardware().status().power[host]) {
    if (const auto lan = this->lan()) lan->plug_in(host);
    hardware().power_on(host);
  }
  const auto running = read_pid_file(directory_of(host) / "fabricd.pid");
  if (options().fabricd && !(running && alive(*running))) start_fabricd(host);
}

// --- status

std::string Lab::status_json() const {
  const LabDescription& lab = description();
  const Options options = this->options();
  Hardware::Status hardware;
  std::string hardware_error;
  try {
    hardware = this->hardware().status();
  } catch (const Error& error) {
    hardware_error = error.what();
  }
  json::array hosts, cables;
  for (unsigned k = 1; k <= lab.hosts.size(); ++k) {
    const std::string& host = lab.hosts[k - 1].name;
    const auto process = read_pid_file(directory_of(host) / "fabricd.pid");
    json::value fabricd = nullptr;
    if (process && alive(*process)) fabricd = process->pid;
    hosts.push_back(json::object{{"name", host},
                                 {"power", hardware.power[host]},
                                 {"fabricd", fabricd},
                                 {"ipv4", to_string(address4(k))},
                                 {"ipv6", to_string(address6(k))},
                                 {"namespace", namespace_of(host).name()},
                                 {"log", (directory_of(host) / "fabricd.log").string()}});
  }
  for (const Hardware::Status::Cable& cable : hardware.cables)
    cables.push_back(
        json::object{{"a", cable.a}, {"b", cable.b}, {"state", cable.state}, {"faults", cable.faults}});
  json::object status{{"schema", 1},
                      {"lab", name_},
                      {"directory", directory_.string()},
                      {"fabricd", options.fabricd},
                      {"hosts", std::move(hosts)},
                      {"cables", std::move(cables)}};
  if (const auto lan = this->lan()) {
    json::object ports;
    for (const auto& [member, state] : lan->ports()) ports[member] = state;
    status["lan"] = std::move(ports);
  }
  if (!hardware_error.empty()) status["error"] = hardware_error;
  return json::serialize(status);
}

}  // namespace fabric::tools::lab
