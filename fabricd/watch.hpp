// Calls somebody whenever a file descriptor that belongs to another is readable.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>

namespace fabric::daemon {

/// Watches from construction to destruction, on the control thread. The descriptor is never closed here.
class DescriptorWatch {
 public:
  /// Throws boost::system::system_error.
  DescriptorWatch(boost::asio::io_context& io, int descriptor, std::function<void()> readable);
  ~DescriptorWatch();
  DescriptorWatch(const DescriptorWatch&) = delete;
  DescriptorWatch& operator=(const DescriptorWatch&) = delete;

 private:
  struct State;
  static void wait(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
};

}  // namespace fabric::daemon
