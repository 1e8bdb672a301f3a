// The virtual router's own interface: a macvlan of the LAN interface with the virtual MAC address, which has
// the virtual addresses while this host is master. virtual_interface.cpp tells why each setting is needed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fabricd/gateway/lan_frames.hpp"
#include "fabricd/kernel/interface.hpp"

namespace fabric::daemon {

/// Settings (sysctl) of an interface that is not ours, as long as this lives.
class BorrowedSettings {
 public:
  BorrowedSettings() = default;
  /// Puts back what was there.
  ~BorrowedSettings();
  BorrowedSettings(const BorrowedSettings&) = delete;
  BorrowedSettings& operator=(const BorrowedSettings&) = delete;

  /// The LAN interface answers for its own IPv4 addresses only, and asks in the name of none but those.
  void keep_to_own_addresses(const std::string& lan);

 private:
  void set(const std::string& file, const std::string& value);
  std::map<std::string, std::string> before_;  ///< file to what it held
};

class VirtualInterface {
 public:
  struct Settings {
    std::string lan;  ///< the interface below
    bool ipv4 = true;
    std::uint8_t vrid = 1;
    std::vector<routing::IpAddress> addresses;
    bool accept = false;  ///< packets to the addresses themselves
  };

  /// Removes what a killed daemon has left.
  explicit VirtualInterface(Settings settings);
  /// Removes all that it has set.
  ~VirtualInterface();
  VirtualInterface(const VirtualInterface&) = delete;
  VirtualInterface& operator=(const VirtualInterface&) = delete;

  /// Makes the interface, so that own() is quick. Returns what was refused.
  std::vector<std::string> prepare();
  /// Takes frames to the virtual MAC address and has the addresses. Returns what was refused.
  std::vector<std::string> own();
  /// Gives up the addresses, and goes on taking frames until rest().
  void release();
  /// Takes no frames any more.
  void rest();

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const MacAddress& mac() const { return mac_; }

 private:
  void make();
  void remove();
  void set_up(bool up);
  void filter();
  void set(const std::string& family, const std::string& key, const std::string& value);

  Settings settings_;
  std::string name_;
  MacAddress mac_;
  unsigned index_ = 0;  ///< 0: it does not exist
  std::unique_ptr<KernelInterface> kernel_;
  bool filtering_ = false;
};

/// Removes the interfaces and filters of all virtual routers that no process has any more: a macvlan that is
/// named like ours and has a virtual MAC address.
void remove_leftover_interfaces();

}  // namespace fabric::daemon
