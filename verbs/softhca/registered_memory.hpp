// Registered memory that other processes can map.
//
// A process has one memfd. Registering memory moves its whole pages onto it, contents kept, at the file
// offset that equals their address (the file is sparse and as large as the address space); nothing changes
// for the program, but a peer that maps the same part of the file reaches the memory with plain loads and
// stores. Only private anonymous memory is moved, and never the main stack; everything else stays where it is
// and is reached through process_vm_writev. Deregistering moves the pages back, so that a later fork() does
// not share them.
//
// What the program must not do: write to a buffer from another thread while it is being registered or
// deregistered (such a write can be lost), and expect registered memory to be copied on write at fork().
#pragma once

#include <cstddef>
#include <cstdint>

namespace fabric::softhca {

/// [begin, end) of this process's address space, whole pages; empty if begin == end.
struct PageRange {
  std::uint64_t begin = 0, end = 0;
  [[nodiscard]] bool empty() const { return begin >= end; }
};

/// Not thread-safe: its owner's lock serializes the calls.
class RegisteredMemory {
 public:
  RegisteredMemory() = default;
  ~RegisteredMemory();
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  /// Moves the whole pages of [address, address + length) onto the file, those that are not there yet. The
  /// range that can be mapped by others now; empty where some of the memory cannot be moved, or no page is
  /// whole.
  PageRange share(std::uint64_t address, std::uint64_t length);
  /// Moves pages back that nobody has registered any more.
  void unshare(PageRange range);
  /// The memfd; -1 where there is none yet.
  [[nodiscard]] int descriptor() const { return descriptor_; }

 private:
  bool open_file();
  bool move_in(PageRange range);
  void move_back(PageRange range);
  int descriptor_ = -1;
  std::uint64_t inode_ = 0;
};

}  // namespace fabric::softhca
