// The lab's hardware process, `softhca`, as fabric-lab drives it: cables and power, over its control socket
// (verbs/softhca/control.hpp has the language).
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace fabric::tools::lab {

class Hardware {
 public:
  /// `socket` is the hardware process's control socket. Every call connects anew and throws Error if the
  /// process is not there or refuses. Cable ends are HOST/PORT, HOST/HCA/PORT or HOST.
  explicit Hardware(std::filesystem::path socket) : socket_(std::move(socket)) {}

  /// Takes the light from the cable. Silent: the ports keep their link, what is sent vanishes.
  void cut(const std::string& a, const std::string& b, bool silent) const;
  void mend(const std::string& a, const std::string& b) const;
  /// What a sends to b vanishes; the way back works. Ends with mend().
  void cut_one_way(const std::string& a, const std::string& b) const;
  /// The link is gone for this long.
  void flap(const std::string& a, const std::string& b, std::chrono::milliseconds length) const;
  struct Faults {
    std::chrono::microseconds delay{0};
    std::uint64_t megabits = 0;                            ///< a second; 0 no limit
    std::uint32_t loss = 0, corruption = 0, bad_mads = 0;  ///< of a million packets
  };
  /// Of what is sent into a cable from now on: by one end, where b is empty, or by both.
  void set_faults(const std::string& a, const std::string& b, const Faults& faults) const;
  /// "remove", "insert" or "reset" (it fails, and its driver starts it anew) the adapter of that number.
  /// Programs on it get IBV_EVENT_DEVICE_FATAL.
  void change_adapter(const std::string& what, const std::string& host, unsigned adapter) const;
  /// The host's power. Silent: the neighbours' ports keep their link.
  void power_off(const std::string& host, bool silent) const;
  void power_on(const std::string& host) const;

  struct Status {
    std::map<std::string, bool> power;  ///< by host
    struct Cable {
      std::string a, b, state;  ///< state: "up", "down", "cut", "silent"
      std::string faults;       ///< of what is sent into it, as text; empty where it is sound
    };
    std::vector<Cable> cables;
  };
  [[nodiscard]] Status status() const;

 private:
  std::filesystem::path socket_;
};

}  // namespace fabric::tools::lab
