// Messages with at most one descriptor over a SOCK_SEQPACKET socket.
#pragma once

#include <sys/types.h>

#include <cstddef>

namespace fabric::softhca {

enum class MessageWait { while_full, never };

/// Sends one message, whole, with `descriptor` unless that is -1. False with errno where it failed, EAGAIN
/// where the socket is full and nobody wants to wait. No SIGPIPE.
bool send_message(int socket, const void* data, std::size_t size, int descriptor = -1,
                  MessageWait wait = MessageWait::while_full);

/// Receives one message of at most `size` bytes; what is longer is cut. Returns the bytes, 0 at the end, -1
/// with errno. A descriptor that came along is stored (close-on-exec) or, where nobody wants it, closed.
ssize_t receive_message(int socket, void* data, std::size_t size, int* descriptor = nullptr);

}  // namespace fabric::softhca
