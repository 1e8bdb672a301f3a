#include "fabricd/control/answers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/array.hpp>
#include <deque>

#include "fabricd/control/doctor.hpp"
#include "fabricd/control/views.hpp"
#include "fabricd/host.hpp"

namespace fabric::daemon {

namespace asio = boost::asio;
namespace json = boost::json;

namespace {

const std::vector<std::string> kObjects{"status", "host",   "port",     "cable",   "route",  "path",
                                        "trace",  "ping",   "counters", "monitor", "bw",     "lat",
                                        "log",    "doctor", "drain",    "undrain", "gateway"};
/// How long `doctor` watches what counts up.
constexpr std::chrono::seconds kWatch{1};

json::object to_json(const EchoReply& reply, const routing::Node& node) {
  json::object result{{"sequence", reply.sequence}, {"answered", reply.answered}};
  if (!reply.answered) return result;
  std::string from = fmt::format("host {}", reply.from.value());
  for (const auto& host : node.hosts()) {
    if (host.index == reply.from) from = host.name;
  }
  result["from"] = from;
  result["in"] = reply.ingress == kNoPort ? json::value(nullptr) : json::value(reply.ingress.value() + 1);
  result["at_destination"] = reply.at_destination;
  result["turned"] = reply.turned;
  result["hops"] = reply.hops;
  result["round_trip_us"] = std::chrono::duration<double, std::micro>(reply.round_trip).count();
  return result;
}

json::object to_json(const LatencyStatistics& latency) {
  return {{"samples", latency.samples},
          {"t_min_us", latency.t_min},
          {"t_max_us", latency.t_max},
          {"t_typical_us", latency.t_typical},
          {"t_avg_us", latency.t_avg},
          {"t_stdev_us", latency.t_stdev},
          {"percentile_99_us", latency.percentile_99},
          {"percentile_999_us", latency.percentile_999}};
}

json::object to_json(const BandwidthResult& bandwidth) {
  return {{"sent_frames", bandwidth.sent_frames},
          {"sent_bytes", bandwidth.sent_bytes},
          {"received_frames", bandwidth.received_frames},
          {"received_bytes", bandwidth.received_bytes},
          {"elapsed_s", std::chrono::duration<double>(bandwidth.elapsed).count()},
          {"peak_bytes_per_s", bandwidth.peak},
          {"average_bytes_per_s", bandwidth.average},
          {"messages_per_s", bandwidth.message_rate}};
}

MeasurementRequest measurement_request(const Request& request, HostIndex destination) {
  using R = MeasurementRequest;
  R result;
  result.destination = destination;
  std::uint64_t most_iterations = 1'000'000'000'000;
  if (request.object == "ping") {
    result.kind = MeasurementKind::ping;
    result.iterations = 5;
    most_iterations = 1'000'000;
  } else if (request.object == "trace") {
    result.kind = MeasurementKind::trace;
  } else if (request.object == "lat") {
    result.kind = MeasurementKind::latency;
    most_iterations = R::kMaximumSamples;
  } else {
    result.kind = MeasurementKind::bandwidth;
    result.size = R::kMaximumSize;
    result.iterations = 20'000;
  }
  const auto whole = [&](std::string_view name, std::uint64_t low, std::uint64_t high) {
    return request.number(name, low, high);
  };
  if (const auto way = whole("way", 0, routing::kWays - 1)) result.way = static_cast<unsigned>(*way);
  if (const auto size = whole("size", 1, R::kMaximumSize)) result.size = static_cast<std::uint32_t>(*size);
  if (const auto count = whole("iterations", 1, most_iterations)) result.iterations = *count;
  if (const auto duration = whole("duration_ms", 1, 86'400'000)) {
    result.duration = std::chrono::milliseconds(*duration);
    // A latency keeps every sample, so it has a most; it ends with whichever comes first.
    if (request.object == "lat" && !request.args.contains("iterations"))
      result.iterations = R::kMaximumSamples;
  }
  if (const auto interval = whole("interval_us", 100, 3'600'000'000)) {
    result.interval = std::chrono::microseconds(*interval);
  }
  if (const auto timeout = whole("timeout_ms", 1, 60'000)) {
    result.timeout = std::chrono::milliseconds(*timeout);
  }
  return result;
}

/// What a measurement reports, between the forwarder's callbacks and the coroutine that passes it on.
struct Progress {
  explicit Progress(asio::io_context& io) : news(io, asio::steady_timer::time_point::max()) {}

  std::deque<EchoReply> replies;
  std::optional<MeasurementResult> result;
  asio::steady_timer news;  ///< cancelled to wake the coroutine
};

/// Ends the measurement when its client has gone, unless the host has gone before.
struct CancelAtEnd {
  std::shared_ptr<Host*> host;
  std::shared_ptr<Progress> progress;
  std::uint32_t measurement;
  ~CancelAtEnd() {
    if (*host != nullptr && !progress->result) (*host)->forwarder().cancel(measurement);
  }
};

}  // namespace

Answers::Answers(asio::io_context& io, const EventLog& events)
    : io_(io), events_(events), news_(io, asio::steady_timer::time_point::max()) {}

Host& Answers::host() const {
  if (*host_ == nullptr)
    throw RequestError("fabricd waits for an RDMA adapter; `fabricctl status` says more");
  return **host_;
}

asio::awaitable<json::object> Answers::answer(Request request, ControlServer::Lines& lines) {
  const std::string& object = request.object;
  if (std::find(kObjects.begin(), kObjects.end(), object) == kObjects.end()) {
    throw RequestError(
        fmt::format("there is no object \"{}\"; there are {}", object, fmt::join(kObjects, ", ")));
  }
  if (object == "gateway" && request.verb == "handover") {
    request.only({});
    if (host().gateway() == nullptr)
      throw RequestError("this host is no gateway: its configuration has no [gateway]");
    if (const std::string obstacle = host().gateway()->handover(); !obstacle.empty())
      throw RequestError(obstacle);
    co_return json::object{{"asked", true}};
  }
  if (request.verb != "show") {
    throw RequestError(fmt::format("\"{}\" has no verb \"{}\", only \"show\"", object, request.verb));
  }
  if (object == "status") co_return status();
  if (object == "log") co_return log(request);
  if (object == "monitor") co_return co_await monitor(lines);
  if (object == "host") co_return show_hosts(host(), request);
  if (object == "port") co_return show_ports(host(), request);
  if (object == "cable") co_return show_cables(host(), request);
  if (object == "route") co_return show_routes(host(), request);
  if (object == "path") co_return show_path(host(), request);
  if (object == "gateway") co_return show_gateway(host(), events_);
  if (object == "counters") co_return show_counters(host(), request);
  if (object == "doctor") co_return co_await doctor(request);
  if (object == "drain" || object == "undrain") co_return drain(request, object == "drain");
  co_return co_await measure(request, lines);
}

json::object Answers::status() const {
  json::object result{
      {"version", FABRIC_VERSION},
      {"uptime_s", std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count()}};
  json::array problems;
  if (*host_ == nullptr) {
    result["host"] = nullptr;
    problems.push_back(
        "there is no RDMA adapter; is its driver loaded (modprobe mlx5_ib ib_uverbs ib_umad)?");
  } else {
    for (auto& member : show_status(**host_)) result[member.key()] = std::move(member.value());
    for (const std::string& problem : (*host_)->problems()) problems.push_back(json::string(problem));
  }
  result["problems"] = std::move(problems);
  return result;
}

json::object Answers::drain(const Request& request, bool drained) const {
  request.only({});
  host().set_drained(drained);
  const auto hosts = host().node().hosts();
  const bool critical =
      std::any_of(hosts.begin(), hosts.end(), [](const auto& each) { return each.self && each.critical; });
  return {{"host", host().node().settings().name}, {"drained", drained}, {"critical", critical}};
}

asio::awaitable<json::object> Answers::doctor(const Request& request) {
  request.only({});
  Evidence evidence = gather(host());
  const auto before = std::move(evidence.after);
  asio::steady_timer watch(io_, kWatch);
  co_await watch.async_wait(asio::as_tuple(asio::use_awaitable));
  const auto cancellation = co_await asio::this_coro::cancellation_state;
  if (cancellation.cancelled() != asio::cancellation_type::none) co_return json::object{};
  evidence = gather(host());
  evidence.before = before;
  evidence.interval = std::chrono::duration<double>(kWatch).count();
  co_return to_json(diagnose(evidence));
}

json::object Answers::log(const Request& request) const {
  request.only({"count"});
  const std::uint64_t count = request.number("count", 1, 1'000'000).value_or(50);
  const std::uint64_t kept = events_.next_number() - events_.first_number();
  json::array events;
  for (std::uint64_t number = events_.next_number() - std::min(count, kept); number < events_.next_number();
       ++number) {
    events.push_back(to_json(*events_.from(number)));
  }
  return {{"events", std::move(events)}};
}

asio::awaitable<json::object> Answers::monitor(ControlServer::Lines& lines) {
  for (std::uint64_t next = events_.next_number();;) {
    while (const LoggedEvent* event = events_.from(next)) {
      json::object line = to_json(*event);
      if (event->number > next) line["missed"] = event->number - next;
      next = event->number + 1;
      co_await lines.send(std::move(line));
    }
    co_await news_.async_wait(asio::as_tuple(asio::use_awaitable));
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (cancellation.cancelled() != asio::cancellation_type::none) co_return json::object{};
  }
}

asio::awaitable<json::object> Answers::measure(const Request& request, ControlServer::Lines& lines) {
  request.only({"host", "way", "size", "iterations", "duration_ms", "interval_us", "timeout_ms"});
  const auto word = request.text("host");
  if (!word) throw RequestError(fmt::format("`{}` needs a host", request.object));
  const routing::HostView to = find_host(host().node(), host().configuration(), *word);
  if (to.self) throw RequestError("this is that host; choose another");
  if (!to.reachable)
    throw RequestError(fmt::format("{} is not reachable now; see `fabricctl path`", to.name));

  const auto progress = std::make_shared<Progress>(io_);
  const std::uint32_t measurement = host().forwarder().measure(
      measurement_request(request, to.index),
      [progress](const EchoReply& reply) {
        progress->replies.push_back(reply);
        progress->news.cancel();
      },
      [progress](const MeasurementResult& result) {
        progress->result = result;
        progress->news.cancel();
      });
  if (measurement == 0) {
    throw RequestError(
        fmt::format("{} measurements are under way already; wait", Forwarder::kMaximumMeasurements));
  }
  const CancelAtEnd cancel{host_, progress, measurement};
  json::array replies;
  while (!progress->result || !progress->replies.empty()) {
    while (!progress->replies.empty()) {
      json::object reply = to_json(progress->replies.front(), host().node());
      progress->replies.pop_front();
      replies.push_back(reply);
      co_await lines.send(std::move(reply));
    }
    if (progress->result) break;
    co_await progress->news.async_wait(asio::as_tuple(asio::use_awaitable));
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (cancellation.cancelled() != asio::cancellation_type::none) co_return json::object{};
  }
  const MeasurementResult& result = *progress->result;
  if (!result.error.empty()) throw RequestError(result.error);

  std::uint64_t rate = 0;  // of the way that was measured
  for (const auto& way : ways_between(
           host(), find_host(host().node(), host().configuration(), to_string(host().node().settings().guid)),
           to)) {
    if (way.as_object().at("way").to_number<unsigned>() == result.way) {
      rate = way.as_object().at("rate").to_number<std::uint64_t>();
    }
  }
  json::object answer{{"host", to.name},    {"index", to.index.value()}, {"way", result.way},
                      {"rate", rate},       {"size", result.size},       {"iterations", result.iterations},
                      {"lost", result.lost}};
  if (result.kind == MeasurementKind::bandwidth) {
    answer["bandwidth"] = to_json(result.bandwidth);
  } else {
    answer["latency"] = to_json(result.latency);
  }
  if (result.kind == MeasurementKind::ping || result.kind == MeasurementKind::trace) {
    answer["replies"] = std::move(replies);
  }
  co_return answer;
}

}  // namespace fabric::daemon
