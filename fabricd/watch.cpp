#include "fabricd/watch.hpp"

#include <boost/asio/posix/stream_descriptor.hpp>

namespace fabric::daemon {

/// Outlives the watch where a wait has already ended and its handler is queued.
struct DescriptorWatch::State {
  State(boost::asio::io_context& io, int number, std::function<void()> function)
      : descriptor(io, number), readable(std::move(function)) {}

  boost::asio::posix::stream_descriptor descriptor;
  std::function<void()> readable;
  bool over = false;
};

DescriptorWatch::DescriptorWatch(boost::asio::io_context& io, int descriptor, std::function<void()> readable)
    : state_(std::make_shared<State>(io, descriptor, std::move(readable))) {
  wait(state_);
}

DescriptorWatch::~DescriptorWatch() {
  state_->over = true;
  state_->descriptor.release();
}

void DescriptorWatch::wait(const std::shared_ptr<State>& state) {
  state->descriptor.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                               [state](const boost::system::error_code& error) {
                                 if (error || state->over) return;
                                 state->readable();
                                 if (!state->over) wait(state);
                               });
}

}  // namespace fabric::daemon
