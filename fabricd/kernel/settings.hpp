// Switches of the kernel's networking (sysctl), set for as long as fabricd runs.
#pragma once

#include <string>
#include <vector>

namespace fabric::daemon {

/// Puts back what was there before, where it still has the value that was set: somebody else's later wish
/// counts. After a kill -9 the values stay; they are what a router has anyway.
class KernelSettings {
 public:
  KernelSettings() = default;
  ~KernelSettings();
  KernelSettings(const KernelSettings&) = delete;
  KernelSettings& operator=(const KernelSettings&) = delete;

  /// `name` as in /proc/sys/net, "ipv4/ip_forward". Does nothing where it has that value, or where the kernel
  /// has no such switch (no IPv6). Returns what was refused; empty otherwise.
  std::string set(const std::string& name, const std::string& value);
  /// The present value; empty where there is no such switch.
  [[nodiscard]] static std::string get(const std::string& name);

 private:
  struct Change {
    std::string name, before, value;
  };
  std::vector<Change> changes_;
};

}  // namespace fabric::daemon
