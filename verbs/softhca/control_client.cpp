#include "verbs/softhca/control_client.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

namespace fabric::softhca {
namespace {

struct Socket {
  int descriptor;
  ~Socket() { ::close(descriptor); }
};

[[noreturn]] void fail(int error, const std::string& path) {
  throw std::system_error(error, std::generic_category(), path);
}

}  // namespace

std::string control(const std::string& path, const std::string& request_line) {
  sockaddr_un address{.sun_family = AF_UNIX};
  if (path.size() >= sizeof address.sun_path) fail(ENAMETOOLONG, path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const Socket socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (socket.descriptor < 0) fail(errno, path);
  const timeval patience{.tv_sec = 10};
  ::setsockopt(socket.descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  if (::connect(socket.descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    fail(errno, path);
  }
  const std::string line = request_line + "\n";
  for (std::size_t sent = 0; sent < line.size();) {
    const ssize_t count = ::send(socket.descriptor, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (count < 0) fail(errno, path);
    sent += static_cast<std::size_t>(count);
  }
  std::string answer;
  char buffer[4096];
  for (;;) {
    const ssize_t count = ::recv(socket.descriptor, buffer, sizeof buffer, 0);
    if (count < 0) fail(errno, path);
    if (count == 0) fail(EPIPE, path);
    answer.append(buffer, static_cast<std::size_t>(count));
    if (answer.back() == '\n') return answer.substr(0, answer.size() - 1);
  }
}

}  // namespace fabric::softhca
