#include "fabricd/forwarder/measurement_player.hpp"

#include <algorithm>

#include "routing/forwarding_state.hpp"

namespace fabric::daemon {
namespace {

using namespace std::chrono_literals;
using routing::FrameClass;
using routing::FrameHeader;

constexpr std::uint8_t kHopLimit = 255;
/// The peak of a bandwidth measurement is the best stretch of at least so long.
constexpr Duration kPeakWindow = 100ms;
/// A trace ends after so many hops in a row that did not answer.
constexpr std::uint64_t kSilentHops = 3;
constexpr unsigned kStreamBatch = 32;  ///< frames in one round, so that traffic has its turn
constexpr Duration kReportInterval = 20ms;
/// Frames of a bandwidth measurement that the destination has not reported on: more than the fastest cable holds,
/// fewer than a relay can queue. Without the limit a source outruns a slower relay, and measures its drops.
constexpr std::uint64_t kStreamWindow = 128;

std::uint64_t nanoseconds(Duration duration) {
  return static_cast<std::uint64_t>(duration.count());
}
std::uint64_t nanoseconds(TimePoint time) {
  return nanoseconds(time.time_since_epoch());
}
std::uint64_t rate(std::uint64_t bytes, Duration elapsed) {
  return elapsed <= Duration::zero() ? 0 : bytes * 1'000'000'000 / nanoseconds(elapsed);
}

}  // namespace

void MeasurementPlayer::begin(Measurement& measurement) {
  *std::find(active_.begin(), active_.end(), nullptr) = &measurement;
}

bool MeasurementPlayer::run() {
  bool worked = false;
  for (Measurement* measurement : active_)
    if (measurement != nullptr) worked |= step(*measurement, outlet_.now());
  return worked;
}

std::optional<TimePoint> MeasurementPlayer::next_timer() const {
  std::optional<TimePoint> next;
  for (const Measurement* m : active_) {
    if (m == nullptr) continue;
    const TimePoint due = !m->begun ? TimePoint{} : m->waiting ? m->deadline : m->next_send;
    if (!next || due < *next) next = due;
  }
  return next;
}

bool MeasurementPlayer::step(Measurement& m, TimePoint now) {
  if (m.cancelled.load(std::memory_order_relaxed)) {
    finish(m, nullptr);
    return true;
  }
  if (!m.begun) {
    m.begun = true;
    m.began = m.next_send = now;
    m.give_up = now + m.request.timeout;
    MeasurementResult& result = m.result;
    result.kind = m.request.kind;
    result.destination = m.request.destination;
    result.size =
        std::clamp(m.request.size, MeasurementRequest::kMinimumSize, MeasurementRequest::kMaximumSize);
    const auto way = outlet_.way_to(m.request.destination);
    if (m.request.destination == outlet_.self())
      finish(m, "the destination is this host itself");
    else if (!way)
      finish(m, "the destination is not reachable");
    else
      result.way = m.request.way.value_or(*way) % routing::kWays;
    return true;
  }
  return m.request.kind == MeasurementKind::bandwidth ? step_bandwidth(m, now) : step_echo(m, now);
}

bool MeasurementPlayer::step_echo(Measurement& m, TimePoint now) {
  if (m.waiting) {
    if (now < m.deadline) return false;
    m.waiting = false;
    ++m.result.lost;
    ++m.lost_in_a_row;
    if (m.request.kind != MeasurementKind::latency)
      outlet_.report(m.session, EchoReply{.sequence = m.sequence - 1});
  }
  const bool trace = m.request.kind == MeasurementKind::trace;
  const std::uint64_t last =
      trace ? std::min<std::uint64_t>(m.request.iterations, kHopLimit) : m.request.iterations;
  const bool timed = m.request.kind == MeasurementKind::latency && m.request.duration > Duration::zero();
  if (m.sequence == last || (timed && now >= m.began + m.request.duration) ||
      (trace && (m.reached || m.lost_in_a_row == kSilentHops))) {
    finish(m, nullptr);
    return true;
  }
  if (now < m.next_send) return false;
  return send_echo(m, now);
}

bool MeasurementPlayer::send_echo(Measurement& m, TimePoint now) {
  const Slot slot = outlet_.take_local();
  if (slot == kNoSlot) {
    m.next_send = now + 1ms;
    return false;
  }
  const bool trace = m.request.kind == MeasurementKind::trace;
  Outlet::Frame frame{FrameClass::echo, m.request.destination, m.result.way, kHopLimit};
  frame.payload = m.result.size;
  if (trace) {
    frame.hop_limit = static_cast<std::uint8_t>(m.sequence + 1);
    frame.flags = FrameHeader::kHopLimitEcho;
  }
  Echo echo;
  echo.hop_limit_start = frame.hop_limit;
  // Where the way was asked for, the answer comes back over the same cables: on a ring the other way.
  if (m.request.way) echo.reply_way = static_cast<std::uint8_t>(m.result.way ^ 1);
  echo.session = m.session;
  echo.sequence = m.sequence;
  m.asked = outlet_.now();
  echo.asked = nanoseconds(m.asked);
  echo.encode(outlet_.payload(slot));
  outlet_.clear_payload(slot, Echo::kSize, m.result.size);
  ++m.sequence;
  ++m.result.iterations;
  m.waiting = true;
  m.deadline = m.asked + m.request.timeout;
  m.next_send = m.request.kind == MeasurementKind::ping ? m.next_send + m.request.interval : m.asked;
  outlet_.send(slot, frame);  // where it was dropped it counts as lost, in time
  return true;
}

bool MeasurementPlayer::step_bandwidth(Measurement& m, TimePoint now) {
  BandwidthResult& result = m.result.bandwidth;
  const bool timed = m.request.duration > Duration::zero();
  if (!m.reached &&
      (timed ? now < m.began + m.request.duration : m.result.iterations < m.request.iterations)) {
    const std::uint64_t before = m.result.iterations;
    for (unsigned i = 0; i < kStreamBatch; ++i) {
      if (outlet_.crowded(m.request.destination, m.result.way)) break;
      if (!timed && m.result.iterations == m.request.iterations) break;
      if (m.result.iterations - m.reported >= kStreamWindow) break;
      if (!send_stream(m)) break;
      if (m.result.iterations % (kStreamWindow / 4) == 0) request_report(m, now);
    }
    const bool sent = m.result.iterations != before;
    if (sent) m.give_up = now + m.request.timeout;
    if (!sent && now >= m.asked + kReportInterval) request_report(m, now);  // the last answer was lost
    if (now >= m.give_up) {
      finish(m, "frames could not be sent");
      return true;
    }
    m.next_send = now + 100us;  // completions make room in the egress queue, and wake the thread before that
    return sent;
  }
  if (!m.reached) {  // all is sent: from here on it is about the report
    m.reached = true;
    m.give_up = now + m.request.timeout;
    m.next_send = now;
    result.sent_frames = m.result.iterations;
    result.sent_bytes = m.result.iterations * m.result.size;
  }
  if (result.received_frames >= result.sent_frames || now >= m.give_up) {
    m.result.lost = result.sent_frames - std::min(result.sent_frames, result.received_frames);
    finish(m, result.received_frames == 0 ? "no report from the destination" : nullptr);
    return true;
  }
  if (now < m.next_send) return false;
  m.next_send = now + kReportInterval;
  return request_report(m, now);
}

/// Asks behind all frames sent so far: when the answer comes, each of them has arrived or been dropped.
bool MeasurementPlayer::request_report(Measurement& m, TimePoint now) {
  const Slot slot = outlet_.take_local();
  if (slot == kNoSlot) return false;
  m.asked = now;
  Echo echo;
  echo.operation = Echo::Operation::report_request;
  echo.session = m.session;
  echo.sequence = m.result.iterations;
  echo.asked = nanoseconds(now);
  echo.encode(outlet_.payload(slot));
  outlet_.clear_payload(slot, Echo::kSize, Echo::kReportSize);
  outlet_.send(slot,
               {FrameClass::echo, m.request.destination, m.result.way, kHopLimit, 0, Echo::kReportSize});
  return true;
}

bool MeasurementPlayer::send_stream(Measurement& m) {
  const Slot slot = outlet_.take_local();
  if (slot == kNoSlot) return false;
  put_session(outlet_.payload(slot), m.session);
  outlet_.clear_payload(slot, kStreamHeader, m.result.size);
  if (!outlet_.send(slot,
                    {FrameClass::stream, m.request.destination, m.result.way, kHopLimit, 0, m.result.size}))
    return false;
  ++m.result.iterations;
  return true;
}

void MeasurementPlayer::take_echo(Slot slot, std::uint32_t payload, const FrameHeader& header,
                                  PortIndex ingress) {
  const auto echo = Echo::decode(outlet_.payload(slot).first(payload));
  if (!echo) {
    counters_[HostCounter::drop_malformed].add();
    return outlet_.give(slot);
  }
  switch (echo->operation) {
    case Echo::Operation::request: {
      Echo reply = *echo;
      reply.operation = Echo::Operation::reply;
      return answer(slot, payload, header, ingress, reply);
    }
    case Echo::Operation::report_request: {
      const Stream* stream = find_stream(routing::host_of(header.source), echo->session);
      if (payload < Echo::kReportSize) break;
      Echo report = *echo;
      report.operation = Echo::Operation::report;
      if (stream != nullptr) {
        report.report = stream->report;
        report.report.elapsed = nanoseconds(stream->last - stream->first);
        if (stream->report.peak == 0)
          report.report.peak = rate(stream->window_bytes, stream->last - stream->first);
      }
      return answer(slot, payload, header, ingress, report);
    }
    case Echo::Operation::reply:
    case Echo::Operation::hop_limit:
    case Echo::Operation::report:
      take_answer(*echo, header);
      return outlet_.give(slot);
  }
  counters_[HostCounter::drop_malformed].add();
  outlet_.give(slot);
}

void MeasurementPlayer::answer_hop_limit(Slot slot, std::uint32_t payload, const FrameHeader& header,
                                         PortIndex ingress) {
  auto echo = Echo::decode(outlet_.payload(slot).first(payload));
  if (!echo || echo->operation != Echo::Operation::request) {
    counters_[HostCounter::drop_hop_limit].add();
    return outlet_.give(slot);
  }
  echo->operation = Echo::Operation::hop_limit;
  answer(slot, payload, header, ingress, *echo);
}

/// The request's own buffer goes back, padding and all.
void MeasurementPlayer::answer(Slot slot, std::uint32_t payload, const FrameHeader& header, PortIndex ingress,
                               Echo echo) {
  const HostIndex asking = routing::host_of(header.source);
  echo.hop_limit_end = header.hop_limit;
  echo.flags = (header.flags & FrameHeader::kTurned) != 0 ? Echo::kTurned : 0;
  echo.ingress = ingress.value();
  echo.from = routing::lid_of(outlet_.self(), 0).value();
  echo.answered = nanoseconds(outlet_.now());
  echo.encode(outlet_.payload(slot));
  const unsigned way =
      echo.reply_way != Echo::kAnyWay ? echo.reply_way % routing::kWays : outlet_.way_to(asking).value_or(0);
  if (outlet_.send(slot, {FrameClass::echo, asking, way, kHopLimit, 0, payload}))
    counters_[HostCounter::echo_answered].add();
}

void MeasurementPlayer::take_answer(const Echo& echo, const FrameHeader& header) {
  const auto found = std::find_if(active_.begin(), active_.end(), [&](const Measurement* m) {
    return m != nullptr && m->session == echo.session;
  });
  if (found == active_.end()) return counters_[HostCounter::drop_no_session].add();
  Measurement& m = **found;
  if (echo.operation == Echo::Operation::report) {
    if (m.request.kind != MeasurementKind::bandwidth) return;
    m.reported = std::max(m.reported, std::min(echo.sequence, m.result.iterations));
    if (!m.reached) return;
    BandwidthResult& result = m.result.bandwidth;
    result.received_frames = echo.report.frames;
    result.received_bytes = echo.report.bytes;
    result.elapsed = Duration(echo.report.elapsed);
    result.peak = static_cast<double>(echo.report.peak);
    m.next_send = std::min(m.next_send, outlet_.now() + 1ms);  // looks at the report, or asks again
    return;
  }
  const TimePoint now = outlet_.now();
  if (!m.waiting || echo.sequence + 1 != m.sequence)  // an answer after its time
    return counters_[HostCounter::drop_no_session].add();
  m.waiting = false;
  m.lost_in_a_row = 0;
  const auto round_trip = now - m.asked;
  const bool at_destination = echo.operation == Echo::Operation::reply;
  if (at_destination) m.reached = true;
  if (m.round_trips.size() < m.round_trips.capacity()) m.round_trips.push_back(nanoseconds(round_trip));
  if (m.request.kind != MeasurementKind::latency) {
    EchoReply reply;
    reply.sequence = echo.sequence;
    reply.answered = true;
    reply.at_destination = at_destination;
    reply.from = routing::host_of(Lid(echo.from));
    reply.ingress = PortIndex(echo.ingress);
    reply.turned = (echo.flags & Echo::kTurned) != 0 || (header.flags & FrameHeader::kTurned) != 0;
    reply.hops = static_cast<std::uint8_t>(echo.hop_limit_start - echo.hop_limit_end + 1);
    reply.round_trip = round_trip;
    outlet_.report(m.session, reply);
  }
  step(m, now);  // latency: the next one at once
}

void MeasurementPlayer::finish(Measurement& m, const char* error) {
  if (error != nullptr) m.result.error = error;
  *std::find(active_.begin(), active_.end(), &m) = nullptr;
  outlet_.finished(m);
}

MeasurementPlayer::Stream* MeasurementPlayer::find_stream(HostIndex source, std::uint32_t session) {
  for (Stream& stream : streams_)
    if (stream.source == source && stream.session == session) return &stream;
  return nullptr;
}

void MeasurementPlayer::count_stream(std::span<const std::byte> payload, const FrameHeader& header) {
  if (payload.size() < kStreamHeader) return counters_[HostCounter::drop_malformed].add();
  const TimePoint now = outlet_.now();
  const HostIndex source = routing::host_of(header.source);
  const std::uint32_t session = get_session(payload);
  Stream* stream = find_stream(source, session);
  if (stream == nullptr) {  // in the place of the one that was quiet for longest
    stream = &*std::min_element(streams_.begin(), streams_.end(),
                                [](const Stream& a, const Stream& b) { return a.last < b.last; });
    *stream = {.source = source, .session = session, .first = now, .last = now, .window = now};
  }
  stream->last = now;
  stream->report.bytes += payload.size();
  // The clock starts when the first frame has arrived, so a rate is that of the frames after it.
  if (stream->report.frames++ > 0) stream->window_bytes += payload.size();
  if (now - stream->window >= kPeakWindow) {
    stream->report.peak = std::max(stream->report.peak, rate(stream->window_bytes, now - stream->window));
    stream->window = now;
    stream->window_bytes = 0;
  }
  counters_[HostCounter::stream_frames].add();
  counters_[HostCounter::stream_bytes].add(payload.size());
}

}  // namespace fabric::daemon
