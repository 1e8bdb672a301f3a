// The interface on the LAN: its state as netlink tells it, and the sockets for VRRP and for the LAN's signs
// of life. One for both address families.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "fabricd/gateway/lan_frames.hpp"
#include "fabricd/gateway/vrrp_packet.hpp"
#include "fabricd/watch.hpp"

namespace fabric::daemon {

class LanPort {
 public:
  struct State {
    unsigned index = 0;  ///< 0: there is no such interface
    bool up = false;     ///< administratively up, with carrier
    MacAddress mac{};
    routing::IpAddress primary4{}, primary6{};  ///< source addresses; zero: none
    bool operator==(const State&) const = default;
  };
  struct Callbacks {
    std::function<void()> changed;  ///< state(), after construction
    std::function<void(const VrrpDatagram& datagram)> received;
    /// Somebody on the LAN has answered a request for its address.
    std::function<void(const routing::IpAddress& address)> answered;
  };

  /// The interface need not exist yet. `ignore` are no source addresses. Throws std::system_error.
  LanPort(boost::asio::io_context& io, std::string name, std::vector<routing::IpAddress> ignore,
          Callbacks callbacks);
  ~LanPort();
  LanPort(const LanPort&) = delete;
  LanPort& operator=(const LanPort&) = delete;

  [[nodiscard]] const State& state() const { return state_; }
  [[nodiscard]] const std::string& name() const { return name_; }

  /// Returns 0, or the errno.
  int send(std::span<const std::byte> frame);
  /// Gives out all that has been received by now.
  void read();

 private:
  struct Socket {
    int descriptor = -1;
    std::unique_ptr<DescriptorWatch> watch;
    void close();
    ~Socket() { close(); }
  };

  /// Whether the state is another one now.
  bool refresh();
  void attach();
  void detach();
  void read_vrrp(bool ipv4);
  void read_arp();
  void read_icmpv6();

  boost::asio::io_context& io_;
  std::string name_;
  std::vector<routing::IpAddress> ignore_;
  Callbacks callbacks_;
  State state_;
  Socket netlink_, sender_, vrrp4_, vrrp6_, arp_, icmpv6_;
};

}  // namespace fabric::daemon
