// Sequence windows against any arrivals, with a plain memory of what was passed on: no frame is passed on
// twice, every buffer comes back exactly once, and nothing waits longer than it may.
#include <set>
#include <tuple>

#include "routing/sequence_window.hpp"
#include "tests/fuzz/input.hpp"

using namespace fabric;
using namespace fabric::routing;
using fabric::fuzz::Input;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  SequenceWindows::Settings settings;
  settings.capacity = 1 + in.below(32);
  settings.per_window = 1 + in.below(32);
  SequenceWindows windows(settings);
  ForwardingState state;
  state.hosts.resize(3);
  state.hosts[1].guid = Guid{1};
  state.hosts[2].guid = Guid{2};
  windows.prepare(state);

  TimePoint now{};
  SequenceWindows::Slot next_slot = 0;
  std::set<SequenceWindows::Slot> inside;  // kept by the window, or being looked at
  using Name = std::tuple<Lid, std::uint8_t, std::uint8_t, std::uint32_t>;
  std::set<Name> delivered;  // of the present epoch, while no restart could hide a repetition
  std::uint64_t restarts = 0;
  const auto deliver = [&](SequenceWindows::Slot slot) { FUZZ_REQUIRE(inside.erase(slot) == 1); };
  std::uint32_t sequence = in.number<std::uint32_t>();

  for (int i = 0; i < 3000 && !in.empty(); ++i) {
    const std::uint8_t what = in.byte();
    if (what < 32) {
      now += std::chrono::milliseconds(what);
      windows.expire(now, deliver);
      continue;
    }
    FrameHeader header;
    header.source = lid_of(HostIndex{static_cast<std::uint16_t>(what & 3)}, 0);
    header.lane = (what >> 2 & 1) != 0 ? 15 : 0;
    header.destination = Lid{static_cast<std::uint16_t>(8 | (what >> 3 & 1))};
    if ((what >> 4 & 1) != 0) header.flags = in.byte() & 0x0F;
    header.epoch = what >= 250 ? in.byte() : 0;
    const std::uint8_t jump = in.byte();
    if (jump < 240) {
      sequence += static_cast<std::uint32_t>(jump) % 8 - 3;
    } else {
      sequence += in.number<std::uint16_t>() - 0x8000U;
    }
    header.sequence = sequence;
    const SequenceWindows::Slot slot = next_slot++;
    inside.insert(slot);
    const auto verdict = windows.accept(now, header, slot, deliver);
    if (windows.counters().restarts != restarts) {
      restarts = windows.counters().restarts;
      delivered.clear();
    }
    switch (verdict) {
      case SequenceWindows::Verdict::delivered:
        FUZZ_REQUIRE(!inside.contains(slot));
        FUZZ_REQUIRE(delivered.emplace(header.source, header.lane, header.epoch, sequence).second);
        break;
      case SequenceWindows::Verdict::held:
        FUZZ_REQUIRE(inside.contains(slot));
        FUZZ_REQUIRE(delivered.emplace(header.source, header.lane, header.epoch, sequence).second);
        break;
      case SequenceWindows::Verdict::duplicate:
      case SequenceWindows::Verdict::stale:
      case SequenceWindows::Verdict::unknown:
        FUZZ_REQUIRE(inside.erase(slot) == 1);
        break;
    }
    FUZZ_REQUIRE(windows.held() == inside.size() && windows.held() <= settings.capacity);
    FUZZ_REQUIRE(inside.empty() == !windows.deadline().has_value());
  }
  now += settings.hold;
  windows.expire(now, deliver);
  FUZZ_REQUIRE(inside.empty() && windows.held() == 0);
  return 0;
}
