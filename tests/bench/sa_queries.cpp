// How many questions a subnet administrator answers one client: PathRecords from this port to itself, the way
// kernels ask for them.
//
//   sa_queries DEVICE PORT SECONDS WINDOW
//
// Prints answers a second, answers, and requests that were not answered within a second. WINDOW questions are
// under way at a time.
#include <endian.h>
#include <infiniband/umad.h>
#include <infiniband/umad_types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kSize = 256;
constexpr int kTimeout = 1000;  // ms
constexpr std::uint64_t kDgidSgid = 0xC;

void put64(std::uint8_t* at, std::uint64_t value) {
  value = htobe64(value);
  std::memcpy(at, &value, sizeof value);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "sa_queries DEVICE PORT SECONDS WINDOW\n");
    return 2;
  }
  const int port_number = std::atoi(arguments[2]);
  const std::chrono::duration<double> time(std::atof(arguments[3]));
  const int window = std::atoi(arguments[4]);
  umad_port_t attributes{};
  if (umad_init() < 0 || umad_get_port(arguments[1], port_number, &attributes) < 0) return 1;
  const int port = umad_open_port(arguments[1], port_number);
  const int agent = umad_register(port, UMAD_CLASS_SUBN_ADM, 2, 0, nullptr);
  if (port < 0 || agent < 0) return 1;

  std::vector<std::uint8_t> question(umad_size() + kSize), answer(umad_size() + kSize);
  umad_set_addr(question.data(), static_cast<int>(attributes.sm_lid), 1, 0, static_cast<int>(UMAD_QKEY));
  auto* mad = static_cast<std::uint8_t*>(umad_get_mad(question.data()));
  mad[0] = 1;
  mad[1] = UMAD_CLASS_SUBN_ADM;
  mad[2] = 2;
  mad[3] = 1;      // Get
  mad[17] = 0x35;  // PathRecord
  put64(mad + 48, kDgidSgid);
  for (const int gid : {64, 80}) {
    std::memcpy(mad + gid, &attributes.gid_prefix, 8);
    std::memcpy(mad + gid + 8, &attributes.port_guid, 8);
  }

  std::uint64_t sent = 0, answered = 0, lost = 0, wrong = 0;
  const auto ask = [&] {
    put64(mad + 8, ++sent);
    if (umad_send(port, agent, question.data(), kSize, kTimeout, 0) < 0) std::exit(1);
  };
  const auto begin = Clock::now();
  for (int i = 0; i < window; ++i) ask();
  Clock::duration elapsed{};
  for (;;) {
    int length = kSize;
    if (umad_recv(port, answer.data(), &length, 2 * kTimeout) < 0) return 1;
    const auto* response = static_cast<const std::uint8_t*>(umad_get_mad(answer.data()));
    if (umad_status(answer.data()) != 0)
      ++lost;
    else if (response[4] != 0 || response[5] != 0)
      ++wrong;
    else
      ++answered;
    elapsed = Clock::now() - begin;
    if (elapsed >= time) break;
    ask();
  }
  std::printf("%.0f %llu %llu %llu\n",
              static_cast<double>(answered) / std::chrono::duration<double>(elapsed).count(),
              static_cast<unsigned long long>(answered), static_cast<unsigned long long>(lost),
              static_cast<unsigned long long>(wrong));
  umad_release_port(&attributes);
  umad_close_port(port);
  return 0;
}
