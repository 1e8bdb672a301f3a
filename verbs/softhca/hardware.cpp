// The hardware process of a lab: one thread, one epoll loop around the model (model.hpp), which it gives real
// time and real clients.
//
//   calls      one connection per client process: requests and replies (protocol.hpp). Its end is the end of
//              the client: whatever the client had in the shared memory is reaped
//   umad       one socket pair per open umad port: MADs. The rest of what a host's kernel does with MADs is
//   in
//              kernel_mad.cpp
//   events     one socket pair per open device: asynchronous events
//   issm       one socket pair per held issm file
//   control    JSON lines (control.hpp)
//
// Nothing here ever waits for a client. A client that does not read has its messages queued, and after
// kBacklogLimit of them they are lost, as a kernel would do.
#include "verbs/softhca/hardware.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <system_error>
#include <unordered_map>
#include <vector>

#include "verbs/softhca/control.hpp"
#include "verbs/softhca/descriptor_passing.hpp"
#include "verbs/softhca/kernel_mad.hpp"
#include "verbs/softhca/model.hpp"
#include "verbs/softhca/protocol.hpp"
#include "verbs/softhca/sysfs.hpp"
#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kBacklogLimit = 16384;  // messages of one socket
constexpr std::size_t kLongestControlLine = 65536;
constexpr unsigned kMadsAtOnce = 16;              // of one port, before others get their turn
constexpr std::size_t kLongestMessage = 1 << 20;  // of an agent that leaves RMPP to the kernel
constexpr int kSocketBuffer = 4 << 20;            // an RMPP message crosses the socket whole

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(Descriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  [[nodiscard]] int get() const { return descriptor_; }

 private:
  int descriptor_ = -1;
};

enum class Kind { listener, control_listener, signals, calls, events, umad, issm, control, ending };

// The directories of /sys/class/infiniband (sysfs.hpp), PATH.sys/HOST.
class Sysfs {
 public:
  Sysfs(std::string root, const LabDescription& lab) : root_(std::move(root)) {
    fs::remove_all(root_);  // of a process that was killed
    for (const LabDescription::Host& host : lab.hosts)
      for (unsigned hca = 0; hca < host.hcas.size(); ++hca) make(host.name, hca, host.hcas[hca]);
  }
  Sysfs(const Sysfs&) = delete;
  Sysfs& operator=(const Sysfs&) = delete;
  ~Sysfs() {
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }

  void make(const std::string& host, unsigned hca, unsigned ports) const {
    const auto make_file = [](const fs::path& path) { std::ofstream(path).flush(); };
    for (unsigned p = 1; p <= ports; ++p) {
      const fs::path port = of(host, hca) / "ports" / std::to_string(p);
      for (const char* table : {"gids", "pkeys", "counters"}) fs::create_directories(port / table);
      for (const char* file : kPortFiles) make_file(port / file);
      for (unsigned i = 0; i < kMaxGids; ++i) make_file(port / "gids" / std::to_string(i));
      for (unsigned i = 0; i < kMaxPkeys; ++i) make_file(port / "pkeys" / std::to_string(i));
      for (const CounterFile& counter : kCounterFiles) make_file(port / "counters" / counter.name);
    }
    for (const char* file : kHcaFiles) make_file(of(host, hca) / file);
  }

  void remove(const std::string& host, unsigned hca) const {
    std::error_code ignored;
    fs::remove_all(of(host, hca), ignored);
  }

 private:
  [[nodiscard]] fs::path of(const std::string& host, unsigned hca) const {
    return fs::path(root_) / host / ("softhca" + std::to_string(hca));
  }

  std::string root_;
};

// Whatever the loop watches.
struct Endpoint {
  Kind kind;
  Descriptor socket;
  unsigned host = 0, hca = 0;
  PortNumber port = 0;
  std::uint32_t insertion = 0;  // of the port's adapter
  ClientId client = 0;
  UmadId umad = 0;
  pid_t pid = 0;
  std::string input;                      // control: what has come of a line
  std::deque<std::vector<char>> backlog;  // what the socket would not take yet
  bool closed = false;
};

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX};
  if (path.size() >= sizeof address.sun_path) {
    throw std::system_error(ENAMETOOLONG, std::generic_category(), path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

// Nobody may take the place of a hardware process that is alive; a socket that nobody listens on is left
// over.
void expect_nobody_at(const std::string& path) {
  const sockaddr_un address = address_of(path);
  const Descriptor probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    throw std::system_error(EADDRINUSE, std::generic_category(), path);
  }
}

// Listens under a name of its own and moves that to `path`: who finds the path can connect at once.
Descriptor listen_at(const std::string& path, int type) {
  const std::string temporary = path + "." + std::to_string(::getpid());
  const sockaddr_un address = address_of(temporary);
  Descriptor socket(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  ::unlink(temporary.c_str());
  if (socket.get() < 0 ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(temporary.c_str(), 0666) != 0 || ::listen(socket.get(), 512) != 0 ||
      ::rename(temporary.c_str(), path.c_str()) != 0) {
    fail(path);
  }
  return socket;
}

TimePoint now() {
  timespec time;
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return TimePoint(std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec));
}

constexpr auto kSpin = std::chrono::microseconds(50);

class Hardware final : private Model::Surroundings, private KernelMad::Users {
 public:
  explicit Hardware(const HardwareOptions& options)
      : memory_size_(kVerbsOffset + verbs_area_size()),
        memfd_(::memfd_create("softhca", MFD_CLOEXEC | MFD_ALLOW_SEALING)),
        memory_(map_memory()),
        sysfs_(options.socket + ".sys", options.lab),
        model_(options.lab, *memory_, options.seed, *this),
        kernel_(model_, *this),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (epoll_.get() < 0) fail("epoll_create1");
    prepare_verbs_area(*memory_, verbs_area());
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    ::sigprocmask(SIG_BLOCK, &signals, nullptr);
    watch(Kind::signals, Descriptor(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)));
  }

  ~Hardware() override { ::munmap(memory_, memory_size_); }

  void listen(const std::string& path) {
    watch(Kind::control_listener, listen_at(path + ".ctl", SOCK_STREAM));
    watch(Kind::listener, listen_at(path, SOCK_SEQPACKET));
  }

  void run() {
    while (!stopping_) {
      wait();
      const TimePoint present = now();
      model_.run(present);
      kernel_.run(present);
      remove_closed();
    }
  }

 private:
  // --- the loop ---

  void wait() {
    timespec patience{};
    auto timer = model_.next_timer();
    if (const auto other = kernel_.next_timer(); !timer || (other && *other < *timer)) timer = other;
    if (timer) {
      const auto left = std::max(Duration(0), *timer - now());
      patience.tv_sec = std::chrono::floor<std::chrono::seconds>(left).count();
      patience.tv_nsec = (left % std::chrono::seconds(1)).count();
    }
    std::array<epoll_event, 64> ready;
    // Who has just been asked for something is often asked for more at once, and being woken takes longer
    // than everything that is done then: it looks for a moment before it sleeps, as long as that pays.
    const auto begin = now();
    int count = 0;
    do count = ::epoll_wait(epoll_.get(), ready.data(), ready.size(), 0);
    while (count == 0 && now() - begin < spin_ && (!timer || now() < *timer));
    if (count == 0) {
      count = ::epoll_pwait2(epoll_.get(), ready.data(), ready.size(), timer ? &patience : nullptr, nullptr);
      spin_ = now() - begin < kSpin ? kSpin : Duration(0);
    }
    if (count < 0 && errno != EINTR) fail("epoll_pwait2");
    for (int i = 0; i < count; ++i) {
      Endpoint& endpoint = *static_cast<Endpoint*>(ready[i].data.ptr);
      if (!endpoint.closed && (ready[i].events & EPOLLOUT) != 0) flush(endpoint);
      if (!endpoint.closed && (ready[i].events & ~EPOLLOUT) != 0) handle_input(endpoint);
    }
  }

  Endpoint& watch(Kind kind, Descriptor socket) {
    auto endpoint = std::make_unique<Endpoint>(Endpoint{.kind = kind, .socket = std::move(socket)});
    epoll_event interest{.events = EPOLLIN, .data = {.ptr = endpoint.get()}};
    const int descriptor = endpoint->socket.get();
    if (descriptor < 0 || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, descriptor, &interest) != 0) fail("epoll");
    endpoints_.push_back(std::move(endpoint));
    return *endpoints_.back();
  }

  void watch_output(Endpoint& endpoint, bool on) {
    epoll_event interest{.events = on ? EPOLLIN | EPOLLOUT : EPOLLIN, .data = {.ptr = &endpoint}};
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, endpoint.socket.get(), &interest);
  }

  void handle_input(Endpoint& endpoint) {
    switch (endpoint.kind) {
      case Kind::signals:
        stopping_ = true;
        break;
      case Kind::listener:
        accept_from(endpoint, Kind::calls);
        break;
      case Kind::control_listener:
        accept_from(endpoint, Kind::control);
        break;
      case Kind::calls:
        handle_call(endpoint);
        break;
      case Kind::control:
        handle_control(endpoint);
        break;
      case Kind::umad:
        handle_mads(endpoint);
        break;
      case Kind::events:
      case Kind::issm:    // nobody writes there: it is the end
      case Kind::ending:  // it has ended
        close_endpoint(endpoint);
        break;
    }
  }

  void accept_from(Endpoint& listener, Kind kind) {
    Descriptor socket(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.get() < 0) return;  // gone again
    ucred peer{};
    socklen_t size = sizeof peer;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size);
    watch(kind, std::move(socket)).pid = peer.pid;
  }

  // --- output that never waits ---

  void send(Endpoint& endpoint, std::span<iovec> parts) {
    if (endpoint.closed) return;
    if (endpoint.backlog.empty()) {
      const msghdr message{.msg_iov = parts.data(), .msg_iovlen = parts.size()};
      if (::sendmsg(endpoint.socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return;
      if (errno != EAGAIN && errno != ENOBUFS) return close_endpoint(endpoint);
      watch_output(endpoint, true);
    }
    if (endpoint.backlog.size() >= kBacklogLimit) return;
    std::vector<char>& queued = endpoint.backlog.emplace_back();
    for (const iovec& part : parts) {
      const char* bytes = static_cast<const char*>(part.iov_base);
      queued.insert(queued.end(), bytes, bytes + part.iov_len);
    }
  }

  void send(Endpoint& endpoint, const void* data, std::size_t size) {
    iovec part{const_cast<void*>(data), size};
    send(endpoint, std::span(&part, 1));
  }

  void flush(Endpoint& endpoint) {
    while (!endpoint.backlog.empty()) {
      const std::vector<char>& first = endpoint.backlog.front();
      const ssize_t sent =
          ::send(endpoint.socket.get(), first.data(), first.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0) {
        if (errno != EAGAIN && errno != ENOBUFS) close_endpoint(endpoint);
        return;
      }
      endpoint.backlog.pop_front();
    }
    watch_output(endpoint, false);
  }

  // --- calls ---

  void handle_call(Endpoint& caller) {
    Request request;
    int passed = -1;
    const ssize_t got = receive_message(caller.socket.get(), &request, sizeof request, &passed);
    const Descriptor descriptor(passed);
    if (got < 0 && errno == EAGAIN) return;
    if (got != sizeof request) return close_endpoint(caller);
    request.text[sizeof request.text - 1] = '\0';
    if (caller.client == 0) {
      if (request.call == Call::hello) return greet(caller, request);
      return close_endpoint(caller);
    }
    Reply reply;
    Descriptor lent;
    reply.error = execute(caller, request, descriptor, reply, lent);
    if (!reply_to(caller, &reply, sizeof reply, lent.get())) close_endpoint(caller);
  }

  // A client has one request under way, so its socket has room for the reply.
  static bool reply_to(Endpoint& caller, const void* data, std::size_t size, int lent) {
    return send_message(caller.socket.get(), data, size, lent, MessageWait::never);
  }

  void greet(Endpoint& caller, const Request& request) {
    HelloReply reply;
    unsigned host = 0;
    while (host < model_.hosts().size() && model_.hosts()[host].name != request.text) ++host;
    if (request.version != kLabVersion) {
      reply.reply.error = EPROTO;
    } else if (host == model_.hosts().size()) {
      reply.reply.error = ENXIO;
    } else if (!model_.hosts()[host].powered) {
      reply.reply.error = EHOSTDOWN;
    }
    if (reply.reply.error != 0) {
      reply_to(caller, &reply, sizeof reply, -1);
      return close_endpoint(caller);
    }
    caller.client = next_client_++;
    caller.host = host;
    reply.client = caller.client;
    reply.host = host + 1;
    for (const ModelHca& hca : model_.hosts()[host].hcas) {
      HelloReply::Hca& entry = reply.hca[reply.hcas];
      entry.node_guid = entry.system_image_guid = hca.node_guid;
      entry.vendor_id = kVendorId;
      entry.part_id = kPartId;
      entry.hardware_version = kHardwareVersion;
      for (const PortNumber port : hca.ports) entry.port_index[entry.ports++] = port;
      std::snprintf(entry.name, sizeof entry.name, "softhca%u", reply.hcas);
      std::snprintf(entry.firmware, sizeof entry.firmware, "1.0.0");
      std::snprintf(entry.board_id, sizeof entry.board_id, "SOFTHCA");
      ++reply.hcas;
    }
    if (!reply_to(caller, &reply, sizeof reply, memfd_.get())) close_endpoint(caller);
  }

  // Returns errno. `lent` is what goes back with the reply.
  int execute(Endpoint& caller, const Request& request, const Descriptor& passed, Reply& reply,
              Descriptor& lent) {
    switch (request.call) {
      case Call::hello:
        return EALREADY;
      case Call::open_events:
        if (!present(caller.host, request.hca)) return ENODEV;
        return open_pair(caller, Kind::events, request.hca, 0, 0, lent) == nullptr ? errno : 0;
      case Call::raise_event:
        for (auto& endpoint : endpoints_) {
          if (endpoint->kind == Kind::events && endpoint->client == request.client &&
              endpoint->hca == request.hca) {
            send(*endpoint, &request.event, sizeof request.event);
          }
        }
        return 0;
      case Call::report_key:
        // Whoever sends plays the adapter of the receiver too (wire.hpp).
        if (request.port >= model_.port_count()) return ENODEV;
        model_.key_violation(now(), request.port, static_cast<std::uint16_t>(request.value),
                             request.violation);
        return 0;
      case Call::publish: {
        if (passed.get() < 0) return EBADF;
        Descriptor copy(::fcntl(passed.get(), F_DUPFD_CLOEXEC, 0));
        if (copy.get() < 0) return errno;
        published_[{caller.client, request.key}] = std::move(copy);
        return 0;
      }
      case Call::withdraw:
        return published_.erase({caller.client, request.key}) != 0 ? 0 : ENOENT;
      case Call::import: {
        const auto found = published_.find({request.client, request.key});
        if (found == published_.end()) return ENOENT;
        lent = Descriptor(::fcntl(found->second.get(), F_DUPFD_CLOEXEC, 0));
        return lent.get() < 0 ? errno : 0;
      }
      case Call::hold_issm: {
        const PortNumber port = find_port(caller.host, request);
        if (port == kNoSharedPort) return ENODEV;
        if (open_pair(caller, Kind::issm, request.hca, port, 0, lent) == nullptr) return errno;
        model_.hold_issm(now(), port, +1);
        return 0;
      }
      case Call::describe_node:
        if (!present(caller.host, request.hca)) return ENODEV;
        model_.describe_node(now(), caller.host, request.hca, request.text);
        return 0;
      case Call::update_counters:
        counters_wanted();
        return 0;
      case Call::open_umad: {
        const PortNumber port = find_port(caller.host, request);
        if (port == kNoSharedPort) return ENODEV;
        Endpoint* endpoint = open_pair(caller, Kind::umad, request.hca, port, SOCK_NONBLOCK, lent);
        if (endpoint == nullptr) return errno;
        endpoint->umad = reply.value = kernel_.open(port);
        umad_ports_[endpoint->umad] = endpoint;
        return 0;
      }
      case Call::register_agent:
      case Call::unregister_agent: {
        // A child of the client that has opened the port may use it as well.
        const auto port = umad_ports_.find(static_cast<UmadId>(request.key));
        if (port == umad_ports_.end() || port->second->host != caller.host) return EBADF;
        const auto attempt = [&] {
          return request.call == Call::register_agent ? kernel_.register_agent(port->first, request.agent)
                                                      : kernel_.unregister_agent(port->first, request.value);
        };
        int result = attempt();
        if (result == -EINVAL && close_abandoned_ports()) result = attempt();
        if (result < 0) return -result;
        reply.value = static_cast<std::uint32_t>(result);
        return 0;
      }
    }
    return ENOSYS;
  }

  // --- MADs ---

  // A class may be taken by a port whose last holder has closed it, while that is not known here yet or
  // nothing has followed from it; a kernel would have released it in close(2). True where there was such a
  // port.
  bool close_abandoned_ports() {
    bool found = false;
    for (const auto& [umad, endpoint] : umad_ports_) {
      pollfd socket{endpoint->socket.get(), 0, 0};
      if (!endpoint->closed && (::poll(&socket, 1, 0) != 1 || (socket.revents & POLLHUP) == 0)) continue;
      while (!endpoint->closed) handle_mads(*endpoint);
      kernel_.close(umad);
      found = true;
    }
    return found;
  }

  void handle_mads(Endpoint& endpoint) {
    std::array<iovec, kMadsAtOnce> parts;
    std::array<mmsghdr, kMadsAtOnce> messages{};
    for (unsigned i = 0; i < kMadsAtOnce; ++i) {
      parts[i] = {umad_buffer_.get() + i * kLongestMessage, kLongestMessage};
      messages[i].msg_hdr.msg_iov = &parts[i];
      messages[i].msg_hdr.msg_iovlen = 1;
    }
    const int count = ::recvmmsg(endpoint.socket.get(), messages.data(), kMadsAtOnce, MSG_DONTWAIT, nullptr);
    if (count < 0) {
      if (errno != EAGAIN && errno != EINTR) close_endpoint(endpoint);
      return;
    }
    const TimePoint present = now();
    for (int i = 0; i < count; ++i) {
      const mmsghdr& message = messages[static_cast<unsigned>(i)];
      if (message.msg_len == 0) return close_endpoint(endpoint);
      if ((message.msg_hdr.msg_flags & MSG_TRUNC) != 0) continue;
      kernel_.send(present, endpoint.umad,
                   {static_cast<const std::uint8_t*>(message.msg_hdr.msg_iov->iov_base), message.msg_len});
    }
  }

  void to_user(UmadId user, const ib_user_mad& header, std::span<const std::uint8_t> data) override {
    const auto port = umad_ports_.find(user);
    if (port == umad_ports_.end()) return;
    iovec parts[] = {{const_cast<ib_user_mad*>(&header), sizeof header},
                     {const_cast<std::uint8_t*>(data.data()), data.size()}};
    send(*port->second, parts);
  }

  void received(PortNumber port, const Packet& packet) override { kernel_.receive(now(), port, packet); }

  void counters_wanted() override { collect_traffic(Lab(*memory_, verbs_area()), kHardwareSeat); }

  [[nodiscard]] std::uint32_t insertion(PortNumber port) const { return model_.shared(port).insertion; }

  [[nodiscard]] bool present(unsigned host, unsigned hca) const {
    const auto& hcas = model_.hosts()[host].hcas;
    return hca < hcas.size() && insertion(hcas[hca].ports.front()) != 0;
  }

  PortNumber find_port(unsigned host, const Request& request) const {
    const auto& hcas = model_.hosts()[host].hcas;
    if (!present(host, request.hca) || request.port < 1 || request.port > hcas[request.hca].ports.size()) {
      return kNoSharedPort;
    }
    return hcas[request.hca].ports[request.port - 1];
  }

  // A socket pair: one end is watched here, the other goes to the client. nullptr with errno.
  Endpoint* open_pair(const Endpoint& caller, Kind kind, unsigned hca, PortNumber port, int flags,
                      Descriptor& theirs) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0, pair) != 0) return nullptr;
    theirs = Descriptor(pair[1]);
    for (const int socket : pair) {
      if (::setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBuffer, sizeof kSocketBuffer) != 0) {
        ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof kSocketBuffer);
      }
    }
    Endpoint& ours = watch(kind, Descriptor(pair[0]));
    ours.host = caller.host;
    ours.hca = hca;
    ours.port = port;
    ours.insertion = insertion(port);
    ours.client = caller.client;
    ours.pid = caller.pid;
    return &ours;
  }

  // --- ends ---

  // What follows from the end of a connection follows in remove_closed(): this may be called from anywhere.
  void close_endpoint(Endpoint& endpoint) {
    if (endpoint.closed) return;
    endpoint.closed = true;
    something_closed_ = true;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, endpoint.socket.get(), nullptr);
    ::shutdown(endpoint.socket.get(), SHUT_RDWR);
  }

  void disconnect(unsigned host) {
    for (std::size_t i = 0; i < endpoints_.size(); ++i) {
      Endpoint& endpoint = *endpoints_[i];
      if (endpoint.client != 0 && endpoint.host == host && endpoint.kind != Kind::ending)
        close_endpoint(endpoint);
    }
  }

  void remove_closed() {
    while (std::exchange(something_closed_, false)) {
      const auto first = std::partition(endpoints_.begin(), endpoints_.end(),
                                        [](const auto& endpoint) { return !endpoint->closed; });
      std::vector<std::unique_ptr<Endpoint>> closed(std::make_move_iterator(first),
                                                    std::make_move_iterator(endpoints_.end()));
      endpoints_.erase(first, endpoints_.end());
      for (const auto& endpoint : closed) bury(*endpoint);
    }
  }

  void bury(const Endpoint& endpoint) {
    if (endpoint.kind == Kind::umad) {
      umad_ports_.erase(endpoint.umad);
      kernel_.close(endpoint.umad);
    } else if (endpoint.kind == Kind::issm && insertion(endpoint.port) == endpoint.insertion &&
               model_.port(endpoint.port).issm_holders != 0) {
      model_.hold_issm(now(), endpoint.port, -1);
    } else if (endpoint.kind == Kind::calls && endpoint.client != 0) {
      published_.erase(published_.lower_bound({endpoint.client, 0}),
                       published_.upper_bound({endpoint.client, UINT64_MAX}));
      reap_after_end(endpoint);
    } else if (endpoint.kind == Kind::ending) {
      reap(*memory_, verbs_area(), endpoint.client);
    }
  }

  // A process that has been disconnected goes on writing to its queues until it notices, or is killed. They
  // are its own until it has ended.
  void reap_after_end(const Endpoint& caller) {
    Descriptor process(static_cast<int>(::syscall(SYS_pidfd_open, caller.pid, 0)));
    pollfd ended{process.get(), POLLIN, 0};
    if (process.get() < 0 || caller.pid == ::getpid() || ::poll(&ended, 1, 0) == 1)
      return reap(*memory_, verbs_area(), caller.client);
    watch(Kind::ending, std::move(process)).client = caller.client;
  }

  // --- control ---

  void handle_control(Endpoint& endpoint) {
    char buffer[4096];
    const ssize_t got = ::recv(endpoint.socket.get(), buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return close_endpoint(endpoint);
    endpoint.input.append(buffer, static_cast<std::size_t>(got));
    for (std::size_t end; (end = endpoint.input.find('\n')) != std::string::npos;) {
      const std::string line = endpoint.input.substr(0, end);
      endpoint.input.erase(0, end + 1);
      std::vector<ConnectedClient> clients;
      for (const auto& client : endpoints_) {
        if (client->kind == Kind::calls && client->client != 0 && !client->closed) {
          clients.push_back({client->client, client->pid, client->host});
        }
      }
      counters_wanted();
      const std::string answer =
          execute_control(line, model_, now(), clients, [this](unsigned host) { disconnect(host); }) + "\n";
      send_stream(endpoint, answer);
    }
    if (endpoint.input.size() > kLongestControlLine) close_endpoint(endpoint);
  }

  // A stream socket may take a part of it.
  void send_stream(Endpoint& endpoint, const std::string& text) {
    std::size_t sent = 0;
    while (endpoint.backlog.empty() && sent < text.size()) {
      const ssize_t count =
          ::send(endpoint.socket.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0) break;
      sent += static_cast<std::size_t>(count);
    }
    if (sent < text.size()) send(endpoint, text.data() + sent, text.size() - sent);
  }

  // --- what the model tells ---

  void port_event(PortNumber port, ibv_event_type event) override {
    const CableEnd& place = model_.port(port).place;
    tell(place.host, place.hca, {.type = static_cast<std::uint32_t>(event), .port = place.port});
  }

  // Who has it open is told, and then there is nothing behind the descriptors any more.
  void adapter_removed(unsigned host, unsigned hca) override {
    tell(host, hca, {.type = IBV_EVENT_DEVICE_FATAL});
    for (const auto& endpoint : endpoints_) {
      const bool of_adapter =
          endpoint->kind == Kind::events || endpoint->kind == Kind::umad || endpoint->kind == Kind::issm;
      if (of_adapter && endpoint->host == host && endpoint->hca == hca) close_endpoint(*endpoint);
    }
    sysfs_.remove(model_.hosts()[host].name, hca);
  }

  void adapter_inserted(unsigned host, unsigned hca) override {
    const ModelHost& changed = model_.hosts()[host];
    sysfs_.make(changed.name, hca, static_cast<unsigned>(changed.hcas[hca].ports.size()));
  }

  void tell(unsigned host, unsigned hca, const AsyncEvent& event) {
    for (std::size_t i = 0; i < endpoints_.size(); ++i) {
      Endpoint& endpoint = *endpoints_[i];
      if (endpoint.kind == Kind::events && endpoint.host == host && endpoint.hca == hca) {
        send(endpoint, &event, sizeof event);
      }
    }
  }

  // --- memory ---

  LabMemory* map_memory() {
    if (memfd_.get() < 0 || ::ftruncate(memfd_.get(), static_cast<off_t>(memory_size_)) != 0 ||
        ::fcntl(memfd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
      fail("the lab's memory");
    }
    void* mapped = ::mmap(nullptr, memory_size_, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0);
    if (mapped == MAP_FAILED) fail("the lab's memory");
    auto* memory = new (mapped) LabMemory{};
    memory->header = {.magic = kLabMagic,
                      .version = kLabVersion,
                      .size = memory_size_,
                      .verbs_offset = kVerbsOffset,
                      .verbs_size = memory_size_ - kVerbsOffset};
    return memory;
  }

  std::span<std::byte> verbs_area() {
    return {reinterpret_cast<std::byte*>(memory_) + kVerbsOffset, memory_size_ - kVerbsOffset};
  }

  std::size_t memory_size_;
  Descriptor memfd_;
  LabMemory* memory_;
  std::vector<std::unique_ptr<Endpoint>> endpoints_;
  Sysfs sysfs_;
  Model model_;
  KernelMad kernel_;
  std::unordered_map<UmadId, Endpoint*> umad_ports_;
  // Pages that no message has needed are never touched.
  std::unique_ptr<std::uint8_t[]> umad_buffer_ =
      std::make_unique_for_overwrite<std::uint8_t[]>(kMadsAtOnce * kLongestMessage);
  Descriptor epoll_;
  std::map<std::pair<ClientId, std::uint64_t>, Descriptor> published_;
  ClientId next_client_ = 1;
  Duration spin_{0};  ///< how long it looks before it sleeps
  bool something_closed_ = false;
  bool stopping_ = false;
};

// Removes the names however the process ends, short of a kill.
struct Names {
  std::string path;
  ~Names() {
    ::unlink(path.c_str());
    ::unlink((path + ".ctl").c_str());
  }
};

}  // namespace

void run_hardware(const HardwareOptions& options) {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  expect_nobody_at(options.socket);
  Hardware hardware(options);
  const Names names{options.socket};
  hardware.listen(options.socket);
  std::printf("softhca: ready\n");
  std::fflush(stdout);
  hardware.run();
}

}  // namespace fabric::softhca
