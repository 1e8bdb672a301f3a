#include "verbs/device.hpp"

#include <arpa/inet.h>
#include <endian.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "verbs/mad.hpp"

namespace fabric::verbs {

namespace {

using DeviceList = std::unique_ptr<ibv_device*, Destroyer<ibv_free_device_list>>;

}  // namespace

std::vector<std::string> Device::names() {
  int count = 0;
  const DeviceList list(ibv_get_device_list(&count));
  if (!list) return {};
  std::vector<std::pair<std::uint64_t, std::string>> found;
  for (int i = 0; i < count; ++i)
    found.emplace_back(be64toh(ibv_get_device_guid(list.get()[i])), ibv_get_device_name(list.get()[i]));
  std::sort(found.begin(), found.end());
  std::vector<std::string> names;
  for (auto& [guid, name] : found) names.push_back(std::move(name));
  return names;
}

Device::Device(const std::string& name) : name_(name) {
  int count = 0;
  const DeviceList list(checked(ibv_get_device_list(&count), "ibv_get_device_list"));
  for (int i = 0; i < count && !context_; ++i)
    if (name == ibv_get_device_name(list.get()[i]))
      context_.reset(checked(ibv_open_device(list.get()[i]), "ibv_open_device " + name));
  if (!context_) throw VerbsError(ENODEV, "adapter " + name);
  ibv_device_attr attributes{};
  check(ibv_query_device(context_.get(), &attributes), "ibv_query_device " + name);
  node_guid_ = Guid{be64toh(attributes.node_guid)};
  system_image_guid_ = Guid{be64toh(attributes.sys_image_guid)};
  port_count_ = attributes.phys_port_cnt;
  set_nonblocking(context_->async_fd);
}

std::string Device::driver() const {
  const std::filesystem::path folder = "/sys/class/infiniband/" + name_;
  std::error_code error;
  const auto link = std::filesystem::read_symlink(folder / "device/driver", error);
  if (!error) return link.filename();
  // Software has no device of its own. Soft-RoCE says which interface it is on; only Soft-iWARP speaks iWARP.
  if (std::filesystem::exists(folder / "parent", error)) return "rdma_rxe";
  return context_->device->transport_type == IBV_TRANSPORT_IWARP ? "siw" : "";
}

ibv_port_attr Device::query_port(std::uint8_t port) const {
  ibv_port_attr attributes{};
  check(ibv_query_port(context_.get(), port, &attributes),
        "ibv_query_port " + name_ + " port " + std::to_string(port));
  return attributes;
}

ibv_gid Device::query_gid(std::uint8_t port, int index) const {
  ibv_gid gid{};
  if (ibv_query_gid(context_.get(), port, index, &gid) != 0)
    throw VerbsError(errno, "ibv_query_gid " + name_ + " port " + std::to_string(port));
  return gid;
}

Guid Device::port_guid(std::uint8_t port) const {
  return Guid{be64toh(query_gid(port).global.interface_id)};
}

void Device::on_port_event(std::uint8_t port, PortEventHandler handler) {
  if (handler)
    port_handlers_[port] = std::move(handler);
  else
    port_handlers_.erase(port);
}

void Device::on_other_event(OtherEventHandler handler) {
  other_handler_ = std::move(handler);
}

void Device::dispatch_events() {
  ibv_async_event event{};
  while (ibv_get_async_event(context_.get(), &event) == 0) {
    // Acknowledged before anybody acts on it: ibv_destroy_qp waits for unacknowledged events of its queue
    // pair.
    ibv_ack_async_event(&event);
    switch (event.event_type) {
      case IBV_EVENT_PORT_ACTIVE:
      case IBV_EVENT_PORT_ERR:
      case IBV_EVENT_LID_CHANGE:
      case IBV_EVENT_PKEY_CHANGE:
      case IBV_EVENT_SM_CHANGE:
      case IBV_EVENT_CLIENT_REREGISTER:
      case IBV_EVENT_GID_CHANGE: {
        const auto found = port_handlers_.find(static_cast<std::uint8_t>(event.element.port_num));
        if (found == port_handlers_.end()) break;
        const auto handler = found->second;  // a copy: it may remove itself
        handler(event.event_type);
        break;
      }
      case IBV_EVENT_DEVICE_FATAL:
        failed_ = true;
        [[fallthrough]];
      default:
        if (other_handler_) other_handler_(event);
    }
  }
  // Nothing more will come, and the descriptor stays readable for ever: the driver let go, or died,
  // wordlessly.
  if (errno == EAGAIN || errno == EINTR || std::exchange(failed_, true)) return;
  event = {};
  event.event_type = IBV_EVENT_DEVICE_FATAL;
  if (other_handler_) other_handler_(event);
}

std::string to_string(const ibv_gid& gid) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  inet_ntop(AF_INET6, gid.raw, text.data(), text.size());
  return text.data();
}

std::uint64_t link_rate(std::uint8_t active_width, std::uint8_t active_speed) {
  // Data rate of a lane. SDR to QDR lose a fifth to 8b/10b coding; FDR10 and later are given as they are
  // sold.
  const auto lane = [&]() -> std::uint64_t {
    constexpr std::uint64_t mega = 1'000'000;
    switch (active_speed) {
      case 1:
        return 2'000 * mega;
      case 2:
        return 4'000 * mega;
      case 4:
        return 8'000 * mega;
      case 8:
        return 10'000 * mega;
      case 16:
        return 14'000 * mega;
      case 32:
        return 25'000 * mega;
      case 64:
        return 50'000 * mega;
      case 128:
        return 100'000 * mega;
      default:
        return 0;
    }
  }();
  return link_lanes(active_width) * lane;
}

std::uint32_t mtu_bytes(std::uint8_t mtu) {
  return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128U << mtu : 0;
}

}  // namespace fabric::verbs
