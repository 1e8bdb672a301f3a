// announce INTERFACE PROTOCOL-VERSION [FORMAT]: says "I am here" once a second, as a fabricd of that version
// would, until it is killed. For the tests: somebody at the other end of the cable who is not one to join.
#include <net/if.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "fabricd/ethernet/announcement_socket.hpp"
#include "fabricd/ethernet/port_interface.hpp"
#include "fabricd/ethernet/wire.hpp"

int main(int argc, char** argv) {
  using namespace fabric::daemon;
  const unsigned index = argc > 2 ? if_nametoindex(argv[1]) : 0;
  const auto interface = index == 0 ? std::nullopt : read_interface(index);
  if (!interface || interface->usable.empty()) {
    std::fprintf(stderr,
                 "usage: announce INTERFACE PROTOCOL-VERSION [FORMAT]; the interface needs an IPv6 "
                 "link-local address\n");
    return 2;
  }
  Announcement announcement;
  announcement.identity.host = fabric::Guid{1};
  announcement.identity.name = "stranger";
  announcement.identity.version = static_cast<std::uint16_t>(std::atoi(argv[2]));
  auto bytes = encode(announcement);
  if (argc > 3) bytes[4] = static_cast<std::byte>(std::atoi(argv[3]));
  try {
    boost::asio::io_context io;
    AnnouncementSocket socket(io, index,
                              [](const AnnouncementSocket::Address&, std::span<const std::byte>) {});
    boost::asio::steady_timer timer(io);
    const std::function<void()> repeat = [&] {
      socket.send(interface->usable.front(), bytes);
      timer.expires_after(std::chrono::seconds(1));
      timer.async_wait([&](const boost::system::error_code&) { repeat(); });
    };
    repeat();
    io.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "announce: %s\n", error.what());
    return 1;
  }
}
