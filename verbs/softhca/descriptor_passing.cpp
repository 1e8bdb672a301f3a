#include "verbs/softhca/descriptor_passing.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace fabric::softhca {
namespace {

union Control {
  cmsghdr header;
  char space[CMSG_SPACE(sizeof(int))];
};

}  // namespace

bool send_message(int socket, const void* data, std::size_t size, int descriptor, MessageWait wait) {
  iovec part{const_cast<void*>(data), size};
  msghdr message{.msg_iov = &part, .msg_iovlen = 1};
  Control control{};
  if (descriptor >= 0) {
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    control.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    std::memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
  }
  for (;;) {
    if (::sendmsg(socket, &message, MSG_NOSIGNAL) >= 0) return true;
    if (errno == EAGAIN && wait == MessageWait::while_full) {
      pollfd writable{socket, POLLOUT, 0};
      ::poll(&writable, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
}

ssize_t receive_message(int socket, void* data, std::size_t size, int* descriptor) {
  if (descriptor != nullptr) *descriptor = -1;
  iovec part{data, size};
  Control control{};
  msghdr message{
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t got;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return got;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int received;
    std::memcpy(&received, CMSG_DATA(header), sizeof received);
    if (descriptor != nullptr) {
      *descriptor = received;
    } else {
      ::close(received);
    }
  }
  return got;
}

}  // namespace fabric::softhca
