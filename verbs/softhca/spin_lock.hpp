// Mutual exclusion between the threads of a process on the data path, where a critical section is shorter
// than two system calls: one atomic instruction to take it, a plain store to give it back. Waiting spins,
// then yields.
#pragma once

#include <sched.h>

#include <atomic>

namespace fabric::softhca {

/// Spins before a waiter lets others run.
inline constexpr unsigned kSpins = 64;

class SpinLock {
 public:
  void lock() {
    unsigned spins = 0;
    while (held_.exchange(true, std::memory_order_acquire)) {
      while (held_.load(std::memory_order_relaxed)) {
        if (++spins < kSpins)
          __builtin_ia32_pause();
        else
          sched_yield();
      }
    }
  }
  void unlock() { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_{false};
};

}  // namespace fabric::softhca
