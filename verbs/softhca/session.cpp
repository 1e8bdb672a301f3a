#include "verbs/softhca/session.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "verbs/softhca/descriptor_passing.hpp"

namespace fabric::softhca {
namespace {

// Guards the pointer, not the session; held over fork() so that a child never inherits it locked.
std::mutex session_mutex;
Session* session = nullptr;

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

Session& Session::get() {
  std::lock_guard lock(session_mutex);
  if (session == nullptr) {
    static std::once_flag fork_handlers;
    std::call_once(fork_handlers, [] {
      pthread_atfork([] { session_mutex.lock(); }, [] { session_mutex.unlock(); },
                     &Session::renew_after_fork);
    });
    session = new Session;  // lives as long as the process: other threads may use it during exit()
  }
  return *session;
}

// The child lets go of the parent's connection, or the hardware would not notice when the parent dies. The
// object itself stays: its mutex may be held by a thread that does not exist here.
void Session::renew_after_fork() {
  if (session != nullptr) {
    ::close(session->socket_);
    session = nullptr;
  }
  session_mutex.unlock();
}

Session::Session() : host_(environment("SOFTHCA_HOST")) {
  const std::string path = environment("SOFTHCA_SOCKET");
  if (path.empty()) fail(ENODEV, "SOFTHCA_SOCKET is not set");
  if (host_.size() >= sizeof(Request::text)) fail(ENXIO, "SOFTHCA_HOST is too long");
  sockaddr_un address{.sun_family = AF_UNIX};
  if (path.size() >= sizeof address.sun_path) fail(ENAMETOOLONG, path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);

  socket_ = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (socket_ < 0) fail(errno, "socket");
  int memory = -1;
  try {
    if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail(errno, path);
    Request hello{.call = Call::hello};
    std::memcpy(hello.text, host_.c_str(), host_.size());
    HelloReply reply;
    if (!send_message(socket_, &hello, sizeof hello)) fail(errno, path);
    const ssize_t got = receive_message(socket_, &reply, sizeof reply, &memory);
    if (got >= static_cast<ssize_t>(sizeof(Reply)) && reply.reply.error != 0) {
      fail(reply.reply.error, "host \"" + host_ + "\" of the lab at " + path);
    }
    if (got != sizeof reply || memory < 0) fail(EPROTO, path);

    LabHeader header;
    if (::pread(memory, &header, sizeof header, 0) != sizeof header || header.magic != kLabMagic) {
      fail(EPROTO, path);
    }
    void* mapped = ::mmap(nullptr, header.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (mapped == MAP_FAILED) fail(errno, "mmap of the lab's memory");
    memory_ = static_cast<LabMemory*>(mapped);
    ::close(memory);

    client_ = reply.client;
    host_number_ = reply.host;
    const char* pretended = std::getenv("SOFTHCA_PART_ID");
    for (std::uint32_t i = 0; i < reply.hcas; ++i) {
      const HelloReply::Hca& hca = reply.hca[i];
      hcas_.push_back({hca.name,
                       i,
                       hca.node_guid,
                       hca.system_image_guid,
                       hca.vendor_id,
                       pretended != nullptr ? static_cast<std::uint32_t>(std::strtoul(pretended, nullptr, 0))
                                            : hca.part_id,
                       hca.hardware_version,
                       hca.firmware,
                       hca.board_id,
                       {hca.port_index, hca.port_index + hca.ports}});
    }
  } catch (...) {
    if (memory >= 0) ::close(memory);
    ::close(socket_);
    throw;
  }
}

const HcaDescription* Session::find_hca(const std::string& name) const {
  for (const HcaDescription& hca : hcas_) {
    if (hca.name == name && insertion(hca) != 0) return &hca;
  }
  return nullptr;
}

std::span<std::byte> Session::verbs_area() const {
  return {reinterpret_cast<std::byte*>(memory_) + memory_->header.verbs_offset, memory_->header.verbs_size};
}

Reply Session::call(Request request, int send, int* received) {
  Reply reply;
  int descriptor = -1;
  {
    std::lock_guard lock(mutex_);
    if (!send_message(socket_, &request, sizeof request, send) ||
        receive_message(socket_, &reply, sizeof reply, &descriptor) != sizeof reply) {
      fail(EIO, "the software HCA is gone");
    }
  }
  if (received != nullptr) {
    *received = descriptor;
  } else if (descriptor >= 0) {
    ::close(descriptor);
  }
  return reply;
}

int Session::open_events(std::uint32_t hca) {
  int descriptor = -1;
  const Reply reply = call({.call = Call::open_events, .hca = hca}, -1, &descriptor);
  if (reply.error != 0) fail(reply.error, "asynchronous events");
  return descriptor;
}

int Session::read_event(int events, AsyncEvent& event) {
  const ssize_t got = receive_message(events, &event, sizeof event);
  if (got == sizeof event) return 0;
  return got < 0 && errno == EAGAIN ? EAGAIN : EIO;
}

void Session::raise_event(ClientId client, std::uint32_t hca, const AsyncEvent& event) {
  call({.call = Call::raise_event, .hca = hca, .client = client, .event = event});
}

void Session::report_key(std::uint32_t port, std::uint16_t trap, const KeyViolation& violation) {
  call({.call = Call::report_key, .port = port, .value = trap, .violation = violation});
}

void Session::publish(std::uint64_t key, int descriptor) {
  const Reply reply = call({.call = Call::publish, .key = key}, descriptor);
  if (reply.error != 0) fail(reply.error, "publishing a descriptor");
}

void Session::withdraw(std::uint64_t key) {
  call({.call = Call::withdraw, .key = key});
}

int Session::import(ClientId owner, std::uint64_t key) {
  int descriptor = -1;
  call({.call = Call::import, .client = owner, .key = key}, -1, &descriptor);
  return descriptor;
}

}  // namespace fabric::softhca
