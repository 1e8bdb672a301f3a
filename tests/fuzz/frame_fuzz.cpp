// What the data path reads from a neighbour or from the kernel: frame headers, the decision what becomes of a
// frame, IP packets, echoes.
//
// Subjects: fabricd/forwarder/decision.cpp fabricd/forwarder/packet.cpp fabricd/forwarder/echo.cpp
// Subjects: fabricd/addresses.cpp
#include "fabricd/forwarder/decision.hpp"
#include "fabricd/forwarder/echo.hpp"
#include "fabricd/forwarder/packet.hpp"
#include "routing/frame.hpp"
#include "tests/fuzz/input.hpp"

using namespace fabric;
using namespace fabric::daemon;
using fabric::fuzz::Input;
using fabric::routing::ForwardingState;
using fabric::routing::FrameHeader;

namespace {

void decide(const FrameHeader& header, std::span<std::byte> frame, Input& in) {
  ForwardingState state;
  state.self = HostIndex{static_cast<std::uint16_t>(in.below(4))};
  state.egress.resize(in.below(16));
  for (PortIndex& port : state.egress) port = in.flag() ? PortIndex{in.byte()} : kNoPort;
  const PortMask up = in.number<std::uint32_t>();
  const Decision decision = decide_received(state, up, header);
  if (decision.verdict == Decision::Verdict::send) {
    // Never to a port that is not up, never twice back, and only with hops left.
    FUZZ_REQUIRE((up & port_bit(decision.egress)) != 0);
    FUZZ_REQUIRE(header.hop_limit > 1);
    FUZZ_REQUIRE(!(decision.turn && (header.flags & FrameHeader::kTurned) != 0));
    FUZZ_REQUIRE(destination_of(frame) == header.destination);
    FUZZ_REQUIRE(is_turned(frame) == ((header.flags & FrameHeader::kTurned) != 0));
    decrement_hop_limit(frame);
    if (decision.turn) turn(frame);
    const auto relayed = FrameHeader::decode(frame);
    FUZZ_REQUIRE(relayed && relayed->hop_limit == header.hop_limit - 1);
    FUZZ_REQUIRE(relayed->sequence == header.sequence && relayed->source == header.source);
    FUZZ_REQUIRE(routing::host_of(relayed->destination) == routing::host_of(header.destination));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  switch (in.below(4)) {
    case 0: {
      std::array<std::byte, FrameHeader::kSize> frame{};
      auto header = FrameHeader::decode(fuzz::as_bytes(in.bytes(FrameHeader::kSize)));
      if (!header) return 0;
      header->encode(frame);
      const auto again = FrameHeader::decode(frame);
      FUZZ_REQUIRE(again && again->destination == header->destination && again->lane == header->lane &&
                   again->flags == header->flags && again->flow_hash == header->flow_hash);
      decide(*header, frame, in);
      return 0;
    }
    case 1:
    case 2: {
      const auto packet = fuzz::as_bytes(in.rest());
      const PacketSummary summary = summarize(packet);
      if (summary.kind != PacketSummary::Kind::not_ip)
        FUZZ_REQUIRE(summary.version == 4 || summary.version == 6);
      std::array<std::byte, 1280> out;
      const std::size_t length = build_unreachable(packet, out);
      FUZZ_REQUIRE(length <= out.size());
      // There is no answer to an answer.
      if (length != 0) {
        std::array<std::byte, 1280> second;
        FUZZ_REQUIRE(build_unreachable(std::span(out).first(length), second) == 0);
        FUZZ_REQUIRE(summarize(std::span(out).first(length)).kind != PacketSummary::Kind::not_ip);
      }
      return 0;
    }
    default: {
      const auto bytes = fuzz::as_bytes(in.rest());
      const auto echo = Echo::decode(bytes);
      if (!echo) return 0;
      std::array<std::byte, Echo::kReportSize> out{};
      echo->encode(out);
      const auto again = Echo::decode(out);
      FUZZ_REQUIRE(again && again->session == echo->session && again->sequence == echo->sequence &&
                   again->operation == echo->operation);
      return 0;
    }
  }
}
