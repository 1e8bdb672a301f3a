// One end of an InfiniBand cable, for tests: cable_program DEVICE PORT NAME GUID INCARNATION [PRIORITY]
//
// Prints one line per event: "prepare", "up NEIGHBOUR RATE MTU", "down DETECTOR REASON", "received
// data|control TEXT" (both ends send their name on both queue pairs when they are up), "phase PHASE REASON".
// Reads commands: "status" (answered with "status KEY=VALUE ..."), "lids GUID=LID ...", "reset", "stop".
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/streambuf.hpp>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>

#include "fabricd/control/views.hpp"
#include "fabricd/subnet/infiniband_cable.hpp"

using namespace fabric;
namespace asio = boost::asio;

namespace {

constexpr std::size_t kSlot = 256;
constexpr int kSlots = 4;

/// Receive buffers and a completion queue for one queue pair.
struct Messages {
  Messages(asio::io_context& io, ibv_context* context, ibv_pd* pd, const char* name)
      : name_(name),
        channel_(verbs::checked(ibv_create_comp_channel(context), "channel")),
        queue_(verbs::checked(ibv_create_cq(context, 64, nullptr, channel_.get(), 0), "cq")),
        region_(verbs::checked(ibv_reg_mr(pd, memory_.data(), memory_.size(), IBV_ACCESS_LOCAL_WRITE), "mr")),
        descriptor_(io, channel_->fd) {
    verbs::set_nonblocking(channel_->fd);
    ibv_req_notify_cq(queue_.get(), 0);
    listen();
  }
  ~Messages() { descriptor_.release(); }

  ibv_sge slot(int index, std::size_t size) {
    return {reinterpret_cast<std::uintptr_t>(memory_.data() + static_cast<std::size_t>(index) * kSlot),
            static_cast<std::uint32_t>(size), region_->lkey};
  }
  void prepare(ibv_qp* pair) {
    for (int i = 1; i < kSlots; ++i) {
      ibv_sge element = slot(i, kSlot);
      ibv_recv_wr request{}, *bad = nullptr;
      request.wr_id = static_cast<std::uint64_t>(i);
      request.sg_list = &element;
      request.num_sge = 1;
      verbs::check(ibv_post_recv(pair, &request, &bad), "post receive");
    }
  }
  void send(ibv_qp* pair, const std::string& text) {
    ibv_sge element = slot(0, text.size());
    std::memcpy(memory_.data(), text.data(), text.size());
    ibv_send_wr request{}, *bad = nullptr;
    request.sg_list = &element;
    request.num_sge = 1;
    request.opcode = IBV_WR_SEND;
    request.send_flags = IBV_SEND_SIGNALED;
    verbs::check(ibv_post_send(pair, &request, &bad), "post send");
  }
  void listen() {
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                           [this](const boost::system::error_code& error) {
                             if (error) return;
                             ibv_cq* queue = nullptr;
                             void* context = nullptr;
                             if (ibv_get_cq_event(channel_.get(), &queue, &context) == 0)
                               ibv_ack_cq_events(queue, 1);
                             ibv_req_notify_cq(queue_.get(), 0);
                             drain();
                             listen();
                           });
  }
  void drain() {
    ibv_wc done{};
    while (ibv_poll_cq(queue_.get(), 1, &done) == 1) {
      if (done.status != IBV_WC_SUCCESS) {
        if (done.status != IBV_WC_WR_FLUSH_ERR)
          std::printf("failed %s %s\n", name_, ibv_wc_status_str(done.status));
      } else if (done.opcode == IBV_WC_RECV) {
        std::printf("received %s %.*s\n", name_, static_cast<int>(done.byte_len),
                    memory_.data() + done.wr_id * kSlot);
      }
    }
    std::fflush(stdout);
  }

  const char* name_;
  std::array<char, kSlot * kSlots> memory_{};
  verbs::CompletionChannel channel_;
  verbs::CompletionQueue queue_;
  verbs::MemoryRegion region_;
  asio::posix::stream_descriptor descriptor_;
};

struct Program {
  Program(asio::io_context& io, char** arguments)
      : device(arguments[1]),
        pd(verbs::checked(ibv_alloc_pd(device.context()), "pd")),
        data(io, device.context(), pd.get(), "data"),
        control(io, device.context(), pd.get(), "control"),
        watch(io, device),
        input(io, ::dup(0)),
        io(io) {
    InfinibandCableConfiguration configuration;
    configuration.device_port = static_cast<std::uint8_t>(std::stoi(arguments[2]));
    configuration.identity.name = name = arguments[3];
    configuration.identity.host = Guid{std::stoull(arguments[4], nullptr, 0)};
    configuration.identity.incarnation = static_cast<std::uint32_t>(std::stoul(arguments[5]));
    if (arguments[6] != nullptr) configuration.priority = static_cast<std::uint8_t>(std::stoi(arguments[6]));
    verbs::CableResources resources;
    resources.context = device.context();
    resources.pd = pd.get();
    resources.data_cq = data.queue_.get();
    resources.control_cq = control.queue_.get();
    resources.data_cap = resources.control_cap = {
        .max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 0};
    verbs::Cable::Callbacks callbacks;
    callbacks.prepare = [this](ibv_qp* data_pair, ibv_qp* control_pair) {
      data.prepare(data_pair);
      control.prepare(control_pair);
      say("prepare");
    };
    callbacks.up = [this](const verbs::Connection& connection) {
      say("up " + connection.neighbour.name + ' ' + std::to_string(connection.rate) + ' ' +
          std::to_string(connection.path_mtu));
      data.send(connection.data, name);
      control.send(connection.control, name);
    };
    callbacks.down = [](const std::string& detector, const std::string& reason) {
      say("down " + detector + ' ' + reason);
    };
    callbacks.changed = [this] {
      const auto& status = cable->status();
      say("phase " + std::string(fabric::daemon::word_of(status.phase)) + ' ' + status.reason);
    };
    cable = daemon::make_infiniband_cable(io, device, configuration, resources, callbacks);
    cable->start();
    read();
  }

  using InfinibandCableConfiguration = daemon::InfinibandCableConfiguration;

  static void say(const std::string& text) {
    std::puts(text.c_str());
    std::fflush(stdout);
  }

  void read() {
    asio::async_read_until(input, buffer, '\n', [this](const boost::system::error_code& error, std::size_t) {
      if (error) return stop();
      std::istream stream(&buffer);
      std::string line;
      std::getline(stream, line);
      obey(line);
      read();
    });
  }
  void obey(const std::string& line) {
    std::istringstream words(line);
    std::string verb, word;
    words >> verb;
    if (verb == "status") {
      const auto& status = cable->status();
      std::ostringstream text;
      text << "status phase=" << fabric::daemon::word_of(status.phase) << " lid=" << status.lid.value()
           << " state=" << status.state << " gid=" << status.gid << " mtu=" << status.mtu;
      for (const auto& [key, value] : status.link_layer_facts)
        if (value.find(' ') == std::string::npos) text << ' ' << key << '=' << value;
      text << " sm="
           << (status.link_layer_facts.contains("sm") ? status.link_layer_facts.at("sm").substr(0, 4) : "");
      for (const auto& [key, value] : status.counters) text << ' ' << key << '=' << value;
      say(text.str());
    } else if (verb == "lids") {
      std::map<Guid, Lid> lids;
      while (words >> word) {
        const auto equals = word.find('=');
        lids[Guid{std::stoull(word.substr(0, equals), nullptr, 0)}] =
            Lid{static_cast<std::uint16_t>(std::stoul(word.substr(equals + 1)))};
      }
      cable->set_lids(lids, 1);
    } else if (verb == "reset") {
      cable->reset("heartbeat", "told to");
    } else if (verb == "stop") {
      stop();
    }
  }
  void stop() {
    cable->stop();
    io.stop();
  }

  verbs::Device device;
  verbs::ProtectionDomain pd;
  Messages data, control;
  daemon::DeviceWatch watch;
  asio::posix::stream_descriptor input;
  asio::io_context& io;
  asio::streambuf buffer;
  std::string name;
  std::unique_ptr<verbs::Cable> cable;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fputs("cable_program DEVICE PORT NAME GUID INCARNATION [PRIORITY]\n", stderr);
    return 2;
  }
  try {
    asio::io_context io(1);
    Program program(io, argv);
    io.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cable_program: %s\n", error.what());
    return 1;
  }
  return 0;
}
