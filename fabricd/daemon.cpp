// Start, in this order, each step when the one before is done:
//
//   1. control socket          from here on fabricctl gets answers
//   2. kept state              and the number of this start, written back before anybody is told of it
//   3. READY=1 to systemd      whoever needs the fabric asks for reachability, not for the process
//   4. an adapter              waited for; a machine may load its driver later than it starts fabricd
//   5. Host                    from here on everything is driven by events; adapters come and go
//
// SIGTERM and SIGINT take it down in the opposite order: neighbours are told, so that they turn their traffic
// at once; addresses, routes and the interface go; the socket is removed last. The state stays.
#include "fabricd/daemon.hpp"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/local/datagram_protocol.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <cstdlib>

#include "fabricd/control/answers.hpp"
#include "fabricd/control/server.hpp"
#include "fabricd/host.hpp"

namespace fabric::daemon {

namespace asio = boost::asio;

namespace {

constexpr std::chrono::seconds kAdapterPoll{1};  ///< how often to look which adapters there are
constexpr std::size_t kEventsKept = 2000;

/// To stderr; without a time of its own where the journal adds one.
void set_up_log(const std::string& level) {
  const auto log = spdlog::stderr_color_mt("fabricd");
  log->set_pattern(std::getenv("JOURNAL_STREAM") != nullptr ? "%^%l%$: %v"
                                                            : "%Y-%m-%d %H:%M:%S.%e %^%l%$: %v");
  log->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(log);
}

class Daemon {
 public:
  explicit Daemon(const DaemonOptions& options)
      : options_(options),
        directory_(options.state_directory),
        events_(kEventsKept),
        signals_(io_, SIGTERM, SIGINT),
        answers_(io_, events_),
        server_(io_, options.socket, [this](Request request, ControlServer::Lines& lines) {
          return answers_.answer(std::move(request), lines);
        }) {}

  void run() {
    signals_.async_wait([this](const boost::system::error_code& error, int signal) {
      if (!error) shut_down(signal);
    });
    begin_state();
    tell_systemd("READY=1\nSTATUS=Looking for an adapter");
    asio::co_spawn(io_, start_host(), [this](const std::exception_ptr& failure) {
      failure_ = failure;
      if (failure) io_.stop();
    });
    io_.run();
    disk_.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void record(EventLevel level, std::string kind, std::string text, boost::json::object facts) {
    switch (level) {
      case EventLevel::info:
        spdlog::info("{}: {}", kind, text);
        break;
      case EventLevel::warning:
        spdlog::warn("{}: {}", kind, text);
        break;
      case EventLevel::error:
        spdlog::error("{}: {}", kind, text);
        break;
    }
    events_.add(std::chrono::system_clock::now(), level, std::move(kind), std::move(text), std::move(facts));
    answers_.wake_monitors();
  }

  void begin_state() {
    const auto warn = [this](const StateError& error) {
      record(EventLevel::warning, "state-problem", fmt::format("{}; going on without", error.what()), {});
    };
    try {
      state_ = directory_.load();
    } catch (const StateError& error) {
      warn(error);
    }
    state_.starts = next_start(state_.starts, std::chrono::system_clock::now());
    try {
      directory_.save(state_);
    } catch (const StateError& error) {
      warn(error);
      // The next start will not know of this one, nor this one of the last.
      state_.starts = std::max(state_.starts, next_start(0, std::chrono::system_clock::now()));
    }
  }

  asio::awaitable<void> start_host() {
    asio::steady_timer pause(io_);
    std::vector<std::string> devices = verbs::Device::names();
    const bool waited = devices.empty();
    if (waited) {
      record(EventLevel::warning, "no-adapter",
             "there is no RDMA adapter; is its driver loaded (modprobe mlx5_ib ib_uverbs ib_umad)? Waiting "
             "for one",
             {});
    }
    // Where there was none, several may appear one after the other: until there is no further one.
    for (std::vector<std::string> before; devices.empty() || (waited && devices != before);) {
      before = std::move(devices);
      pause.expires_after(kAdapterPoll);
      co_await pause.async_wait(asio::use_awaitable);
      devices = verbs::Device::names();
    }
    host_ = std::make_unique<Host>(
        io_, disk_, options_.configuration, directory_, state_, devices,
        [this](EventLevel level, std::string kind, std::string text, boost::json::object facts) {
          record(level, std::move(kind), std::move(text), std::move(facts));
        });
    answers_.set_host(host_.get());
    for (;;) {
      tell_systemd(fmt::format("STATUS=Running with {} ports", host_->cables().size()));
      pause.expires_after(kAdapterPoll);
      co_await pause.async_wait(asio::use_awaitable);
      host_->follow_adapters(verbs::Device::names());
    }
  }

  /// One datagram, as sd_notify(3) specifies it. Its library brings six others, each of which a start waits
  /// for.
  void tell_systemd(const std::string& state) {
    const char* socket = std::getenv("NOTIFY_SOCKET");
    if (socket == nullptr) return;
    std::string address = socket;
    if (address.starts_with('@')) address[0] = '\0';
    try {
      asio::local::datagram_protocol::socket sender(io_, asio::local::datagram_protocol());
      sender.send_to(asio::buffer(state), {address});
    } catch (const boost::system::system_error& error) {
      spdlog::warn("cannot tell systemd at {}: {}", socket, error.what());
    }
  }

  void shut_down(int signal) {
    tell_systemd("STOPPING=1");
    spdlog::info("stopping: {}", strsignal(signal));
    answers_.set_host(nullptr);
    host_.reset();
    io_.stop();
  }

  const DaemonOptions options_;
  const StateDirectory directory_;
  State state_;
  asio::io_context io_{1};
  asio::thread_pool disk_{1};
  EventLog events_;
  asio::signal_set signals_;
  Answers answers_;
  ControlServer server_;
  std::unique_ptr<Host> host_;
  std::exception_ptr failure_;
};

}  // namespace

void run_daemon(const DaemonOptions& options) {
  set_up_log(options.configuration.log.level);
  Daemon(options).run();
}

}  // namespace fabric::daemon
