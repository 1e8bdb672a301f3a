// tun_copy NAMESPACE NAMESPACE: a TUN device "fab0" in each of two network namespaces, copied into each other
// by two threads; nothing in between. It is the yardstick for the forwarder: what one TUN queue a side can
// do at most. Runs until standard input ends. Prints "ready" when the devices are there.
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fabricd/forwarder/buffer_arena.hpp"
#include "fabricd/forwarder/tun_device.hpp"

using namespace fabric::daemon;

namespace {

std::unique_ptr<TunDevice> device_in(const std::string& name) {
  std::unique_ptr<TunDevice> device;
  std::thread([&] {  // a thread has a network namespace of its own
    const int descriptor = open(("/run/netns/" + name).c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || setns(descriptor, CLONE_NEWNET) != 0) {
      std::perror(name.c_str());
      std::exit(1);
    }
    close(descriptor);
    device = std::make_unique<TunDevice>("fab0", 65520);
  })
      .join();
  return device;
}

void copy(const TunDevice& from, const TunDevice& to) {
  std::vector<std::byte> buffer(BufferArena::kSlotSize);
  for (;;) {
    const long length = from.read(buffer);
    if (length > 0) {
      // What it does not take is lost, as on any wire.
      [[maybe_unused]] const int refused =
          to.write(std::span(buffer).first(static_cast<std::size_t>(length)));
    } else {
      pollfd readable{from.descriptor(), POLLIN, 0};
      poll(&readable, 1, -1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tun_copy NAMESPACE NAMESPACE\n");
    return 2;
  }
  const auto a = device_in(argv[1]), b = device_in(argv[2]);
  std::thread([&] { copy(*a, *b); }).detach();
  std::thread([&] { copy(*b, *a); }).detach();
  std::puts("ready");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  std::_Exit(0);  // the threads wait for packets
}
