// What makes a process live on a host of the lab: the network namespace, kept under a name so that `ip netns`
// shows it, and the host's name and /etc/hosts, made anew for each process.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace fabric::tools::lab {

/// A network namespace by the name that `ip netns` knows it by.
class HostNamespace {
 public:
  explicit HostNamespace(std::string name) : name_(std::move(name)) {}

  [[nodiscard]] const std::string& name() const { return name_; }
  /// Throws Error if it cannot be made, or exists already.
  void make() const;
  /// Does nothing where there is none.
  void remove() const;
  /// Inode of the namespace; nothing where there is none.
  [[nodiscard]] std::optional<ino_t> inode() const;

  /// @name iproute2 in the namespace; each line is a command without its first word ("link set lo up").
  /// They throw Error where a line fails.
  /// @{
  void ip_batch(const std::vector<std::string>& lines) const;
  void bridge_batch(const std::vector<std::string>& lines) const;
  /// What `bridge -j -d link show` prints.
  [[nodiscard]] std::string bridge_ports() const;
  /// @}
  [[nodiscard]] bool has_interface(const std::string& interface) const;

  /// Makes this process a process of the host, for good. For a child about to exec: `hostname` becomes the
  /// UTS name, `hosts_file` appears as /etc/hosts, /sys shows the namespace's devices.
  void enter(const std::string& hostname, const std::filesystem::path& hosts_file) const;
  /// Calls `function` with this thread inside of the network namespace: sockets that it makes stay there.
  void visit(const std::function<void()>& function) const;

 private:
  std::string name_;
};

}  // namespace fabric::tools::lab
