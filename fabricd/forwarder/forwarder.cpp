#include "fabricd/forwarder/forwarder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "fabricd/forwarder/data_thread.hpp"
#include "verbs/handles.hpp"

namespace fabric::daemon {
namespace {

const ForwarderConfiguration& validated(const ForwarderConfiguration& configuration) {
  if (configuration.ports == 0 || configuration.ports > kMaxPorts)
    throw std::invalid_argument("the forwarder serves 1 to " + std::to_string(kMaxPorts) + " ports");
  if (configuration.receive_buffers < 16 || configuration.send_buffers < 16)
    throw std::invalid_argument("the forwarder needs at least 16 buffers of each kind");
  return configuration;
}

}  // namespace

struct Forwarder::Private {
  struct Adapter {  ///< destroyed in reverse order
    verbs::ProtectionDomain pd;
    verbs::MemoryRegion region;
  };
  struct PortObjects {
    ibv_context* context = nullptr;
    verbs::CompletionChannel channel;
    verbs::CompletionQueue cq;
    ibv_qp* qp = nullptr;
  };
  struct Running {
    std::unique_ptr<Measurement> measurement;
    ReplyCallback reply;
    DoneCallback done;
  };

  Private(const ForwarderConfiguration& wanted, Callbacks wanted_callbacks)
      : configuration(validated(wanted)),
        callbacks(std::move(wanted_callbacks)),
        arena(configuration.ports *
              (std::size_t{configuration.receive_buffers} + configuration.send_buffers)),
        tun(configuration.device, configuration.mtu),
        data(arena, tun, configuration),
        next_session(configuration.incarnation * 2654435761u | 1) {}

  ForwarderConfiguration configuration;
  Callbacks callbacks;
  BufferArena arena;
  std::map<ibv_context*, Adapter> adapters;
  std::map<PortIndex, PortObjects> ports;
  TunDevice tun;
  DataThread data;  ///< stops before anything that it uses goes
  std::map<std::uint32_t, Running> measurements;
  std::uint32_t next_session;
};

Forwarder::Forwarder(const ForwarderConfiguration& configuration, Callbacks callbacks)
    : p_(std::make_unique<Private>(configuration, std::move(callbacks))) {}

Forwarder::~Forwarder() = default;

const std::string& Forwarder::device_name() const {
  return p_->tun.name();
}
unsigned Forwarder::device_index() const {
  return p_->tun.index();
}
std::string Forwarder::device_offloads() const {
  return p_->tun.offloads();
}

verbs::CableResources Forwarder::resources(PortIndex port, ibv_context* context) {
  if (port.value() >= kMaxPorts) throw verbs::VerbsError(EINVAL, "port " + std::to_string(port.value()));
  const auto others = std::count_if(p_->ports.begin(), p_->ports.end(), [&](const auto& entry) {
    return entry.first != port && entry.second.context != nullptr;
  });
  const std::size_t received = static_cast<std::size_t>(others + 1) * p_->configuration.receive_buffers;
  if (static_cast<std::size_t>(others) >= p_->configuration.ports && received > p_->arena.size() / 3 * 2)
    throw verbs::VerbsError(ENOBUFS, fmt::format("the frame buffers were made for {} ports when fabricd was "
                                                 "started; restart it to use more",
                                                 p_->configuration.ports));
  Private::Adapter& adapter = p_->adapters[context];
  if (!adapter.pd) adapter.pd.reset(verbs::checked(ibv_alloc_pd(context), "ibv_alloc_pd"));
  if (!adapter.region) adapter.region = p_->arena.register_with(adapter.pd.get());

  verbs::CableResources resources;
  resources.context = context;
  resources.pd = adapter.pd.get();
  resources.data_cap.max_send_wr = kSendDepth;
  resources.data_cap.max_recv_wr = p_->configuration.receive_buffers;
  resources.data_cap.max_send_sge = resources.data_cap.max_recv_sge = 1;

  Private::PortObjects& objects = p_->ports[port];
  if (objects.context != context) {
    // Twice what a queue pair can have: what the one before left may still be in the queue.
    const unsigned depth = 2 * (kSendDepth + p_->configuration.receive_buffers);
    verbs::CompletionChannel channel(
        verbs::checked(ibv_create_comp_channel(context), "ibv_create_comp_channel"));
    verbs::set_nonblocking(channel->fd);
    verbs::CompletionQueue cq(verbs::checked(
        ibv_create_cq(context, static_cast<int>(depth), nullptr, channel.get(), 0), "ibv_create_cq"));
    p_->data.open(port, {cq.get(), channel.get(), adapter.region->lkey});
    objects.cq = std::move(cq);
    objects.channel = std::move(channel);
    objects.context = context;
  }
  resources.data_cq = objects.cq.get();
  return resources;
}

void Forwarder::prepare(PortIndex port, ibv_qp* data) {
  detach(port);
  p_->ports[port].qp = data;
  p_->data.prepare(port, data);
}

void Forwarder::attach(PortIndex port, ibv_qp* data, std::uint64_t rate) {
  p_->data.attach(port, data, rate);
}

void Forwarder::detach(PortIndex port) {
  const auto found = p_->ports.find(port);
  if (found == p_->ports.end() || found->second.qp == nullptr) return;
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  // Flushes what is posted. It fails where the adapter is gone, and then there is nothing to wait for.
  const bool flushes = ibv_modify_qp(found->second.qp, &attributes, IBV_QP_STATE) == 0;
  found->second.qp = nullptr;
  p_->data.detach(port, flushes ? kDrainLimit : std::chrono::milliseconds(0));
  p_->data.take_suspect(port);  // of no interest any more
}

void Forwarder::release(PortIndex port) {
  const auto found = p_->ports.find(port);
  if (found == p_->ports.end() || found->second.context == nullptr) return;
  detach(port);
  p_->data.open(port, {});
  ibv_context* const context = std::exchange(found->second.context, nullptr);
  found->second.cq.reset();
  found->second.channel.reset();
  if (std::ranges::none_of(p_->ports, [&](const auto& entry) { return entry.second.context == context; }))
    p_->adapters.erase(context);
}

void Forwarder::publish(std::shared_ptr<const routing::ForwardingState> state) {
  auto snapshot = std::make_unique<Snapshot>();
  snapshot->prefixes = routing::PrefixTable(p_->configuration.pools, state->prefixes);
  snapshot->state = std::move(state);
  p_->data.publish(std::move(snapshot));
}

int Forwarder::event_descriptor() const {
  return p_->data.event_descriptor();
}

void Forwarder::dispatch() {
  p_->data.clear_event();
  DataThread::Reply reply;
  while (p_->data.take_reply(reply)) {
    const auto found = p_->measurements.find(reply.session);
    if (found != p_->measurements.end() && found->second.reply) found->second.reply(reply.reply);
  }
  for (auto it = p_->measurements.begin(); it != p_->measurements.end();) {
    if (!it->second.measurement->done.load(std::memory_order_acquire)) {
      ++it;
      continue;
    }
    const Private::Running finished = std::move(it->second);
    it = p_->measurements.erase(it);
    MeasurementResult& result = finished.measurement->result;
    result.latency = latency_statistics(finished.measurement->round_trips);
    BandwidthResult& bandwidth = result.bandwidth;
    const double seconds = std::chrono::duration<double>(bandwidth.elapsed).count();
    if (bandwidth.received_frames > 1 && seconds > 0) {
      // The time runs from the first frame's arrival, so it is that of the others.
      const auto frames = static_cast<double>(bandwidth.received_frames - 1);
      bandwidth.message_rate = frames / seconds;
      bandwidth.average = bandwidth.message_rate * result.size;
      bandwidth.peak = std::max(bandwidth.peak, bandwidth.average);
    }
    finished.done(result);
  }
  for (std::uint8_t i = 0; i < kMaxPorts; ++i) {
    const PortIndex port(i);
    if (const auto status = p_->data.take_suspect(port)) p_->callbacks.suspect(port, *status);
  }
}

std::uint32_t Forwarder::measure(const MeasurementRequest& request, ReplyCallback reply, DoneCallback done) {
  if (p_->measurements.size() >= kMaximumMeasurements) return 0;
  const std::uint32_t session = p_->next_session;
  p_->next_session += 2;  // odd, so never 0
  auto measurement = std::make_unique<Measurement>();
  measurement->session = session;
  measurement->request = request;
  if (request.kind != MeasurementKind::bandwidth)
    measurement->round_trips.reserve(std::min(request.iterations, MeasurementRequest::kMaximumSamples));
  Measurement& started = *measurement;
  p_->measurements[session] = {std::move(measurement), std::move(reply), std::move(done)};
  p_->data.begin(started);
  return session;
}

void Forwarder::cancel(std::uint32_t measurement) {
  const auto found = p_->measurements.find(measurement);
  if (found == p_->measurements.end()) return;
  found->second.measurement->cancelled.store(true, std::memory_order_relaxed);
  p_->data.wake();
}

ForwarderCounters Forwarder::counters() const {
  ForwarderCounters counters;
  const auto list = [](const auto& texts, const auto& values) {
    std::vector<ForwarderCounters::Figure> figures;
    for (std::size_t i = 0; i < texts.size(); ++i)
      figures.push_back({texts[i].name, texts[i].help, values[i]});
    return figures;
  };
  counters.host = list(kHostCounterTexts, p_->data.counters().snapshot());
  for (const auto& [port, objects] : p_->ports)
    counters.ports[port] = list(kPortCounterTexts, p_->data.counters(port).snapshot());
  counters.buffers = p_->arena.size();
  counters.buffers_free = p_->arena.available_now();
  return counters;
}

}  // namespace fabric::daemon
