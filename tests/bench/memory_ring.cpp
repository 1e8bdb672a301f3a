// The software HCA's yardstick: a plain ring in memory that two processes share, one copying in, one copying
// out.
//
//   memory_ring SIZE   messages a second, in slots of SIZE bytes
//   memory_ring        nanoseconds one way of a ping-pong, both spinning
//
// Each is the best of some repeats: it is to stand for what the machine can do at this moment.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int kRepeats = 3;

struct Shared {
  alignas(64) std::atomic<std::uint64_t> written;
  alignas(64) std::atomic<std::uint64_t> read;
  alignas(64) std::atomic<std::uint64_t> ping;
  alignas(64) std::atomic<std::uint64_t> pong;
  alignas(4096) std::array<std::byte, std::size_t{8} << 20> slots;
};

/// One end of the ring; it looks at the other end's counter only when it has to.
class End {
 public:
  End(Shared& shared, std::size_t size, std::uint64_t slots) : shared_(shared), size_(size), slots_(slots) {}
  void put(const std::byte* from) {
    while (mine_ - theirs_ == slots_) theirs_ = shared_.read.load(std::memory_order_acquire);
    std::memcpy(slot(), from, size_);
    shared_.written.store(++mine_, std::memory_order_release);
  }
  void get(std::byte* to) {
    while (mine_ == theirs_) theirs_ = shared_.written.load(std::memory_order_acquire);
    std::memcpy(to, slot(), size_);
    shared_.read.store(++mine_, std::memory_order_release);
  }

 private:
  std::byte* slot() { return shared_.slots.data() + size_ * (mine_ % slots_); }
  Shared& shared_;
  std::size_t size_;
  std::uint64_t slots_, mine_ = 0, theirs_ = 0;
};

/// Runs one function in a child and one here; seconds that the one here took.
template <class Here, class There>
double run(Here here, There there) {
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    there();
    _exit(0);
  }
  const auto begin = std::chrono::steady_clock::now();
  here();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  waitpid(child, nullptr, 0);
  return took.count();
}

/// Whole pages, as programs that care about speed use them; they live as long as the program.
std::byte* buffer(std::size_t size) {
  void* memory = std::aligned_alloc(4096, std::max<std::size_t>(size, 4096));
  return static_cast<std::byte*>(std::memset(memory, 1, size));
}

/// Messages a second.
double messages(Shared& shared, std::size_t size, std::uint64_t slots, std::uint64_t count) {
  std::vector<double> rates;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    shared.written = shared.read = 0;
    std::byte* source = buffer(size);
    std::byte* destination = buffer(size);
    const double seconds = run(
        [&] {
          End end(shared, size, slots);
          for (std::uint64_t i = 0; i < count; ++i) end.get(destination);
        },
        [&] {
          End end(shared, size, slots);
          for (std::uint64_t i = 0; i < count; ++i) end.put(source);
        });
    rates.push_back(static_cast<double>(count) / seconds);
  }
  return *std::max_element(rates.begin(), rates.end());
}

/// Seconds one way.
double one_way(Shared& shared) {
  constexpr std::uint64_t kRounds = 200'000;
  std::vector<double> times;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    shared.ping = shared.pong = 0;
    const auto spin = [](const std::atomic<std::uint64_t>& word, std::uint64_t wanted) {
      while (word.load(std::memory_order_acquire) != wanted) {
      }
    };
    const double seconds = run(
        [&] {
          for (std::uint64_t i = 1; i <= kRounds; ++i) {
            shared.ping.store(i, std::memory_order_release);
            spin(shared.pong, i);
          }
        },
        [&] {
          for (std::uint64_t i = 1; i <= kRounds; ++i) {
            spin(shared.ping, i);
            shared.pong.store(i, std::memory_order_release);
          }
        });
    times.push_back(seconds / (2 * kRounds));
  }
  return *std::min_element(times.begin(), times.end());
}

}  // namespace

int main(int argc, char** argv) {
  void* memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  const std::size_t size = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 0;
  if (memory == MAP_FAILED || size > (1 << 20)) return 1;
  auto& shared = *new (memory) Shared;
  if (size == 0) {
    std::printf("%.1f\n", 1e9 * one_way(shared));
    return 0;
  }
  // Four large slots, or 256 KiB of small ones; a fraction of a second.
  const std::uint64_t slots = std::max<std::uint64_t>(4, (256 << 10) / size);
  std::printf("%.4g\n",
              messages(shared, size, slots, std::min<std::uint64_t>(5'000'000, (4ULL << 30) / size)));
}
