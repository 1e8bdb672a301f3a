// Whether this host has a default route of its own: one that somebody else has put into the kernel's main
// table (static, DHCP, router advertisement, a routing daemon), whose interface has its carrier. fabricd's
// own routes do not count, so what the ring offers never comes back into it.
//
// The kernel tells of every change; then the routes are read anew, so that a lost message costs nothing. A
// route whose carrier is gone stays in the table, marked as such, without a message about the route itself:
// that is why links are watched too.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "fabricd/addresses.hpp"
#include "fabricd/watch.hpp"

namespace fabric::daemon {

struct DefaultRoute {
  bool present = false;
  std::vector<IpAddress> next_hops;  ///< on `interface`; empty where the route is by another one, or has none
  bool operator==(const DefaultRoute&) const = default;
};

/// The state of both families.
struct Upstream {
  DefaultRoute ipv4, ipv6;
  bool operator==(const Upstream&) const = default;
};

class UpstreamWatch {
 public:
  /// `interface` is the LAN's; it need not exist. `changed` is called from the event loop, each time the
  /// routes are different from before. Throws KernelError.
  UpstreamWatch(boost::asio::io_context& io, std::string interface, std::function<void()> changed);
  ~UpstreamWatch();
  UpstreamWatch(const UpstreamWatch&) = delete;
  UpstreamWatch& operator=(const UpstreamWatch&) = delete;

  [[nodiscard]] const Upstream& now() const { return now_; }

 private:
  void ready();
  /// Reads the routes; nothing where the kernel refuses.
  [[nodiscard]] std::optional<Upstream> read() const;

  class Socket;
  std::string interface_;
  std::function<void()> changed_;
  std::unique_ptr<Socket> news_;
  std::unique_ptr<DescriptorWatch> watch_;
  Upstream now_;
};

/// Asks addresses beyond the LAN for echoes, by the LAN's interface. For a default route that is there and
/// leads nowhere.
class UpstreamProbe {
 public:
  static constexpr std::chrono::milliseconds kInterval{200};
  static constexpr unsigned kPatience = 3;  ///< intervals without an answer until it counts as gone

  /// `targets` may be of both families; a family without any always counts as answered. `changed`: an answer
  /// of answers() is different from before; called from the event loop.
  UpstreamProbe(boost::asio::io_context& io, std::string interface, std::vector<IpAddress> targets,
                std::function<void()> changed);
  ~UpstreamProbe();
  UpstreamProbe(const UpstreamProbe&) = delete;
  UpstreamProbe& operator=(const UpstreamProbe&) = delete;

  [[nodiscard]] bool answers(bool ipv4) const { return (ipv4 ? v4_ : v6_).answers; }

 private:
  struct Family {
    int descriptor = -1;
    std::unique_ptr<DescriptorWatch> watch;
    std::vector<IpAddress> targets;
    unsigned silent = kPatience;  ///< intervals since the last answer
    bool answers = true;
  };
  void ask();
  void ask(Family& family, bool ipv4);
  void ready(Family& family, bool ipv4);

  std::string interface_;
  std::function<void()> changed_;
  Family v4_, v6_;
  std::uint16_t sequence_ = 0;
  boost::asio::steady_timer timer_;
};

}  // namespace fabric::daemon
