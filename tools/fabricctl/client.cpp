#include "tools/fabricctl/client.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace fabric::tools {

namespace json = boost::json;

namespace {

// The kernel takes connections for a listener that is just dying, so this may be all that one sees of its
// end.
constexpr std::string_view kEnded = "it ended while it was asked";

NoDaemon no_daemon(const std::string& socket, std::string_view why) {
  return NoDaemon(fmt::format(
      "no fabricd answers at {} ({}); start it (`systemctl start fabricd`, or `fabricd` as root), or say "
      "where its socket is with -s or FABRICD_SOCKET",
      socket, why));
}

}  // namespace

std::string default_socket() {
  const char* name = std::getenv("FABRICD_SOCKET");
  return name != nullptr && *name != '\0' ? name : "/run/fabricd/fabricd.sock";
}

Client::Client(const std::string& socket)
    : socket_(socket), descriptor_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  int error = errno;
  if (descriptor_ >= 0) {
    if (socket.size() >= sizeof address.sun_path) {
      error = ENAMETOOLONG;
    } else {
      std::memcpy(address.sun_path, socket.c_str(), socket.size() + 1);
      if (connect(descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return;
      error = errno;
    }
    close(descriptor_);
  }
  if (error == EACCES || error == EPERM) {
    throw NoDaemon(fmt::format("no right to talk to fabricd at {}; run fabricctl as root", socket));
  }
  throw no_daemon(socket, std::strerror(error));
}

Client::~Client() {
  close(descriptor_);
}

json::object Client::ask(const std::string& object, const json::object& args, unsigned patience,
                         const std::function<void(const json::object&)>& more) {
  const timeval limit{static_cast<time_t>(patience), 0};
  setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  const auto space = object.find(' ');
  const std::string verb = space == std::string::npos ? "show" : object.substr(space + 1);
  const std::string request =
      json::serialize(json::object{{"object", object.substr(0, space)}, {"verb", verb}, {"args", args}}) +
      "\n";
  for (std::size_t done = 0; done < request.size();) {
    const ssize_t sent = send(descriptor_, request.data() + done, request.size() - done, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) throw no_daemon(socket_, kEnded);
    done += static_cast<std::size_t>(sent);
  }
  for (;;) {
    json::object answer = json::parse(read_line()).as_object();
    if (const auto* error = answer.if_contains("error")) throw Failed(std::string(error->as_string()));
    if (!answer.contains("more")) return answer;
    answer.stable_erase("more");
    if (more) more(answer);
  }
}

std::string Client::read_line() {
  for (;;) {
    if (const auto end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    char part[65536];
    const ssize_t size = recv(descriptor_, part, sizeof part, 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      throw Failed("fabricd does not answer; it is alive, but busy or stopped (see its log)");
    }
    if (size <= 0) throw no_daemon(socket_, kEnded);
    buffer_.append(part, static_cast<std::size_t>(size));
  }
}

}  // namespace fabric::tools
