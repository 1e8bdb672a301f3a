// A lab: hosts in network namespaces, joined by the software HCA, each with a fabricd.
//
// Everything of a lab is keyed by its name (FABRIC_LAB in the environment, "lab" by default):
//
//   /run/fabric-lab/NAME/         lab.json (the cabling, as the hardware process reads it), options.json,
//                                 hosts (/etc/hosts of every host), softhca.sock and .ctl, softhca.pid,
//                                 softhca.log
//   /run/fabric-lab/NAME/HOST/    fabricd.sock, fabricd.pid, fabricd.log, state/, fabricd.toml (with a LAN)
//   /run/netns/NAME-HOST          network namespace
//
// There is no process of the lab's own: up, down, kill and start are done by whoever calls them, one at a
// time (a lock on the folder), and exec becomes the program that it is to run. What belongs to the lab is
// found again by looking (process.hpp), so that `down` needs no state to be right.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tools/lab/cabling.hpp"
#include "tools/lab/hardware.hpp"
#include "tools/lab/host_namespace.hpp"
#include "tools/lab/lan.hpp"
#include "tools/lab/process.hpp"
#include "tools/lab/reachability.hpp"

namespace fabric::tools::lab {

/// Holds a lab's folder while its state changes; waits for whoever holds it.
class Lock {
 public:
  explicit Lock(const std::filesystem::path& directory);
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  int fd_;
};

class Lab {
 public:
  /// Letters, digits and underscores, at most 16; throws Error otherwise.
  explicit Lab(std::string name);
  static std::string name_from_environment();

  struct UpOptions {
    std::string shape_json;                       ///< the cabling, in the lab's file format
    std::optional<std::filesystem::path> config;  ///< folder with HOST.toml or fabricd.toml
    bool fabricd = true;
    bool lan = false;  ///< with a LAN, an upstream host and guests (lan.hpp)
    std::chrono::milliseconds timeout{30000};
  };
  /// Brings everything up. Returns the time from the start of the first daemon until every ordered pair had
  /// answered an echo in IPv4 and IPv6 (zero without fabricd). Throws Error with what is missing and where
  /// the logs are; what is there then stays, for inspection.
  std::chrono::duration<double, std::milli> up(const UpOptions& options);

  /// Removes whatever there is of this lab. Returns the reports that sanitizers have written, if any.
  std::string down();

  /// A cable, by its two ends; one of them may be Lan::kSwitch. Silent: the port keeps its link. One way:
  /// only what goes from a to b is lost; cables of the LAN can do that, and it is always silent.
  void cut(const std::string& a, const std::string& b, bool silent, bool one_way) const;
  void mend(const std::string& a, const std::string& b) const;

  /// The same power switch that Hardware has, together with the host's processes. The folder's state stays.
  void kill(const std::string& host, bool silent);
  /// Power, and fabricd if the lab was brought up with it. Does not wait for anything.
  void start(const std::string& host);
  /// Starts only the daemon of a host whose power is on, where it does not run.
  void start_fabricd(const std::string& host);

  /// Becomes the program. Returns only by throwing Error.
  [[noreturn]] void exec(const std::string& host, std::vector<std::string> command);

  [[nodiscard]] bool exists() const;
  /// As JSON, for `status -j`; the text form is made from it.
  [[nodiscard]] std::string status_json() const;

  [[nodiscard]] const std::string& name() const { return name_; }
  /// Throws Error if there is no such lab.
  [[nodiscard]] const LabDescription& description() const;
  /// Nothing where the lab has none.
  [[nodiscard]] std::optional<Lan> lan() const;
  [[nodiscard]] Hardware hardware() const { return Hardware(directory_ / "softhca.sock.ctl"); }
  [[nodiscard]] HostNamespace namespace_of(const std::string& host) const;
  [[nodiscard]] std::filesystem::path fabricd_socket(const std::string& host) const;
  [[nodiscard]] std::filesystem::path directory() const { return directory_; }
  [[nodiscard]] Reachability reachability() const;

 private:
  struct Options {
    bool fabricd = true;
    bool lan = false;
    std::optional<std::filesystem::path> config;
  };
  [[nodiscard]] std::filesystem::path directory_of(const std::string& host) const {
    return directory_ / host;
  }
  /// Throws Error if there is no such host.
  void require_host(const std::string& host) const;
  void require_powered(const std::string& host) const;
  Options options() const;
  void make_folders(const UpOptions& options);
  void start_hardware();
  [[nodiscard]] std::optional<std::filesystem::path> configuration_of(const std::string& host) const;
  [[nodiscard]] std::map<std::string, std::string> environment_of(const std::string& host) const;
  [[nodiscard]] std::optional<std::string> dead_daemon() const;
  [[nodiscard]] std::vector<HostNamespace> namespaces() const;
  void kill_members(const std::optional<std::string>& host) const;

  std::string name_;
  std::filesystem::path directory_;
  mutable std::optional<LabDescription> description_;
};

}  // namespace fabric::tools::lab
