// The handshake: its codec on any bytes, and its core against a neighbour that says anything at any time.
// What must hold: every Opened is followed by one Down, nothing is sent in an endless loop, and after the
// nonsense an honest neighbour is connected.
//
// Subjects: verbs/handshake.cpp
#include <utility>

#include "tests/fuzz/input.hpp"
#include "verbs/handshake.hpp"

using namespace fabric;
using namespace fabric::verbs;
using fabric::fuzz::Input;
using namespace std::chrono_literals;
namespace hs = fabric::verbs::handshake;

namespace {

void check_codec(std::span<const std::uint8_t, hs::kMessageSize> bytes) {
  const auto message = hs::decode(bytes);
  if (!message || message->identity.version != hs::kVersion) return;
  FUZZ_REQUIRE(message->identity.name.size() <= hs::kTextSize && message->reason.size() <= hs::kTextSize);
  std::array<std::uint8_t, hs::kMessageSize> again{};
  hs::encode(*message, again);
  const auto twice = hs::decode(again);
  FUZZ_REQUIRE(twice && twice->kind == message->kind && twice->progress == message->progress &&
               twice->session == message->session && twice->peer_session == message->peer_session &&
               twice->data == message->data && twice->control == message->control &&
               twice->mtu == message->mtu && twice->identity.host == message->identity.host);
}

Identity identity(std::uint64_t host, std::uint32_t incarnation) {
  return {.host = Guid{host}, .name = "h", .port = 1, .incarnation = incarnation, .version = hs::kVersion};
}

/// One end: does what its core says, at once.
class End {
 public:
  End(Identity own) : core(std::move(own)) {}

  void give(TimePoint now, const hs::Event& event) {
    std::size_t events = 0;
    std::vector<hs::Event> waiting{event};
    while (!waiting.empty()) {
      FUZZ_REQUIRE(++events < 50);
      const hs::Event next = waiting.front();
      waiting.erase(waiting.begin());
      for (const hs::Action& action : core.handle(now, next)) {
        if (const auto* send = std::get_if<hs::Send>(&action)) {
          outbox.push_back(send->message);
        } else if (std::get_if<hs::Open>(&action) != nullptr) {
          if (fails) {
            waiting.emplace_back(hs::Failed{"no"});
          } else {
            FUZZ_REQUIRE(!queue_pairs);
            queue_pairs = true;
            waiting.emplace_back(hs::Opened{{Qpn{++numbers}, 1}, {Qpn{++numbers}, 2}});
          }
        } else if (std::get_if<hs::Connect>(&action) != nullptr) {
          FUZZ_REQUIRE(queue_pairs);
          if (fails)
            waiting.emplace_back(hs::Failed{"no"});
          else
            waiting.emplace_back(hs::Connected{});
        } else if (std::get_if<hs::Up>(&action) != nullptr) {
          FUZZ_REQUIRE(queue_pairs && !up);
          up = true;
        } else if (std::get_if<hs::Down>(&action) != nullptr) {
          FUZZ_REQUIRE(queue_pairs);
          queue_pairs = up = false;
        }
      }
    }
    FUZZ_REQUIRE(outbox.size() < 10000);
  }

  hs::Handshake core;
  std::vector<hs::Message> outbox;
  bool queue_pairs = false, up = false, fails = false;
  std::uint32_t numbers = 1;
};

hs::Session some_session(Input& in, const hs::Session& real) {
  hs::Session session = real;
  if (in.below(4) == 0) session.number += in.below(5) - 2;
  if (in.below(8) == 0) session.incarnation = in.byte();
  return session;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  if (in.flag()) {
    std::array<std::uint8_t, hs::kMessageSize> bytes{};
    hs::Message valid;
    valid.identity = identity(2, 7);
    valid.kind = hs::Kind{static_cast<std::uint8_t>(1 + in.below(3))};
    hs::encode(valid, bytes);
    in.fill(std::span(bytes).subspan(in.below(bytes.size())));
    check_codec(bytes);
  }

  TimePoint now{};
  End end(identity(1, 100));
  hs::Session last_heard;  // of `end`
  const auto pass = [&](Duration duration) {
    const TimePoint until = now + duration;
    while (end.core.next_timer() && *end.core.next_timer() <= until) {
      now = std::max(now, *end.core.next_timer());
      end.give(now, hs::TimerExpired{});
      FUZZ_REQUIRE(!end.core.next_timer() || *end.core.next_timer() > now);
    }
    now = until;
  };
  for (int i = 0; i < 300 && !in.empty(); ++i) {
    if (!end.outbox.empty()) last_heard = end.outbox.back().session;
    end.outbox.clear();
    end.fails = in.below(16) == 15;
    switch (in.below(10)) {
      case 0:
        end.give(now, hs::LinkActive{static_cast<std::uint8_t>(in.below(8))});
        break;
      case 1:
        end.give(now, hs::LinkLost{"event", "gone"});
        break;
      case 2:
        end.give(now, hs::Reset{"heartbeat", "silent"});
        break;
      case 3:
        pass(std::chrono::milliseconds(in.number<std::uint16_t>()));
        break;
      default: {
        hs::Message message;
        message.kind = hs::Kind{static_cast<std::uint8_t>(1 + (in.below(8) > 5 ? in.below(3) : 0))};
        message.progress = hs::Progress{static_cast<std::uint8_t>(in.below(4))};
        message.identity = identity(in.below(8) == 0 ? 1 : 2, in.below(3));
        if (in.below(16) == 0) message.identity.version = in.byte();
        message.session = {in.below(3), in.below(6)};
        message.peer_session = some_session(in, last_heard);
        message.data = {Qpn{in.number<std::uint32_t>()}, in.number<std::uint32_t>()};
        message.control = {Qpn{in.byte()}, in.byte()};
        message.mtu = in.byte();
        message.reason = in.text(in.below(80));
        std::array<std::uint8_t, hs::kMessageSize> bytes{};
        hs::encode(message, bytes);
        in.mutate(bytes);
        if (const auto received = hs::decode(bytes)) end.give(now, hs::Received{*received});
      }
    }
  }

  // The cable is plugged into an honest neighbour.
  end.fails = false;
  end.give(now, hs::LinkLost{"event", "gone"});
  FUZZ_REQUIRE(!end.queue_pairs);
  End other(identity(3, 1));
  end.outbox.clear();
  end.give(now, hs::LinkActive{5});
  other.give(now, hs::LinkActive{5});
  for (int i = 0; i < 1000 && !(end.up && other.up); ++i) {
    now += 10ms;
    for (End* one : {&end, &other})
      if (one->core.next_timer() && *one->core.next_timer() <= now) one->give(now, hs::TimerExpired{});
    for (auto [from, to] : {std::pair{&end, &other}, std::pair{&other, &end}}) {
      const auto messages = std::exchange(from->outbox, {});
      for (const auto& message : messages) to->give(now, hs::Received{message});
    }
  }
  FUZZ_REQUIRE(end.up && other.up);
  return 0;
}
