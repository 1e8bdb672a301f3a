// What the kernel needs to be told, and why:
//
//   macvlan, mode private      frames to the virtual MAC address come in here. What this host sends to the
//                              LAN goes out by the LAN interface, with its own MAC address.
//   addresses with /32, /128   a longer network would make a second route to the LAN, by the macvlan.
//   addrgenmode none           the kernel would give the macvlan a link-local address that both hosts share.
//   arp_ignore 1, both         each interface answers for its own addresses only; without it the LAN
//                              interface would answer for the virtual ones with its physical MAC address
//                              (RFC 9568, 8.1.2).
//   arp_announce 2, LAN        the LAN interface asks with its own address. Else it would ask for a neighbour
//                              in the name of a virtual address, and with its physical MAC address teach the
//                              neighbour the wrong one.
//   rp_filter 0 or 2 (loose)   what comes in by the macvlan goes back by the LAN interface, which strict
//                              filtering takes for spoofed. The kernel takes the greater of `all` and this.
//   accept_ra 0, forwarding 1  it is a router's interface, and there is nothing to learn by it.
//   up only while needed       a backup must drop frames to the virtual MAC address (RFC 9568, 6.4.2). It is
//                              taken down also when the LAN interface loses its carrier, as a macvlan that
//                              stays up keeps its routes and swallows what is sent to them.
//
// accept = false: a table of nftables drops packets to the virtual addresses, except neighbour discovery. ARP
// is not filtered by it.
//
// The interface is removed at the end; a killed daemon cannot, so the next one does it at its start.
#include "fabricd/gateway/virtual_interface.hpp"

#include <fmt/format.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <netlink/route/link/inet6.h>
#include <netlink/route/link/macvlan.h>
#include <nftables/libnftables.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fabricd/addresses.hpp"
#include "fabricd/kernel/netlink.hpp"

namespace fabric::daemon {

namespace {

using netlink::Link;

constexpr const char* kPrefix = "fabgw";

netlink::Socket connect_netlink() {
  netlink::Socket socket(nl_socket_alloc());
  if (!socket || nl_connect(socket.get(), NETLINK_ROUTE) < 0)
    throw KernelError("cannot open a netlink socket");
  return socket;
}

std::string table_of(const std::string& interface) {
  return "fabricd_" + interface.substr(0, interface.find('-')) + "_" +
         interface.substr(interface.find('-') + 1);
}

/// Returns what nftables complains about.
std::string nftables(const std::string& commands) {
  nft_ctx* context = nft_ctx_new(NFT_CTX_DEFAULT);
  if (context == nullptr) return "no memory";
  nft_ctx_buffer_output(context);
  nft_ctx_buffer_error(context);
  std::string complaint;
  if (nft_run_cmd_from_buffer(context, commands.c_str()) != 0) complaint = nft_ctx_get_error_buffer(context);
  nft_ctx_free(context);
  return complaint;
}

void remove_table(const std::string& interface) {
  const std::string table = table_of(interface);
  nftables(
      fmt::format("add table inet {}; delete table inet {}", table, table));  // no error if there is none
}

void delete_link(const std::string& name) {
  const netlink::Socket socket = connect_netlink();
  const Link link(rtnl_link_alloc());
  rtnl_link_set_name(link.get(), name.c_str());
  rtnl_link_delete(socket.get(), link.get());
}

}  // namespace

BorrowedSettings::~BorrowedSettings() {
  for (const auto& [file, value] : before_) std::ofstream(file) << value;
}

void BorrowedSettings::keep_to_own_addresses(const std::string& lan) {
  set(fmt::format("/proc/sys/net/ipv4/conf/{}/arp_ignore", lan), "1");
  set(fmt::format("/proc/sys/net/ipv4/conf/{}/arp_announce", lan), "2");
}

void BorrowedSettings::set(const std::string& file, const std::string& value) {
  if (!before_.contains(file)) std::getline(std::ifstream(file), before_[file]);
  std::ofstream(file) << value;
}

VirtualInterface::VirtualInterface(Settings settings)
    : settings_(std::move(settings)),
      name_(fmt::format("{}{}-{}", kPrefix, settings_.ipv4 ? 4 : 6, settings_.vrid)),
      mac_(virtual_mac(settings_.ipv4, settings_.vrid)) {
  remove();
}

VirtualInterface::~VirtualInterface() {
  try {
    remove();
  } catch (const KernelError&) {  // nothing can be done about it
  }
}

void VirtualInterface::set(const std::string& family, const std::string& key, const std::string& value) {
  // A kernel without it does not need it.
  std::ofstream(fmt::format("/proc/sys/net/{}/conf/{}/{}", family, name_, key)) << value;
}

void VirtualInterface::make() {
  const netlink::Socket socket = connect_netlink();
  const unsigned below = if_nametoindex(settings_.lan.c_str());
  if (below == 0) throw KernelError("there is no interface " + settings_.lan);
  const Link link(rtnl_link_macvlan_alloc());
  const netlink::Address mac(nl_addr_build(AF_LLC, mac_.data(), mac_.size()));
  rtnl_link_set_name(link.get(), name_.c_str());
  rtnl_link_set_link(link.get(), static_cast<int>(below));
  rtnl_link_set_addr(link.get(), mac.get());
  rtnl_link_macvlan_set_mode(link.get(), rtnl_link_macvlan_str2mode("bridge"));
  const int result = rtnl_link_add(socket.get(), link.get(), NLM_F_CREATE | NLM_F_EXCL);
  if (result < 0) {
    throw KernelError(fmt::format("cannot make {} on {}: {}", name_, settings_.lan, nl_geterror(result)));
  }
  index_ = if_nametoindex(name_.c_str());
  const Link which(rtnl_link_alloc()), changes(rtnl_link_alloc());
  rtnl_link_set_ifindex(which.get(), static_cast<int>(index_));
  rtnl_link_set_ifindex(changes.get(), static_cast<int>(index_));
  if (rtnl_link_inet6_set_addr_gen_mode(changes.get(), IN6_ADDR_GEN_MODE_NONE) == 0) {
    rtnl_link_change(socket.get(), which.get(), changes.get(), 0);
  }
  kernel_ = std::make_unique<KernelInterface>(index_, name_);
  // IPv4's, also where this one has none: every interface of the LAN hears ARP requests.
  set("ipv4", "arp_ignore", "1");
  if (settings_.ipv4) {
    std::string all;
    std::getline(std::ifstream("/proc/sys/net/ipv4/conf/all/rp_filter"), all);
    set("ipv4", "rp_filter", all == "0" ? "0" : "2");
    set("ipv4", "send_redirects", "0");
    set("ipv4", "forwarding", "1");
  } else {
    set("ipv6", "accept_ra", "0");
    set("ipv6", "accept_dad", "0");
    set("ipv6", "forwarding", "1");
  }
}

void VirtualInterface::remove() {
  kernel_.reset();
  index_ = 0;
  remove_table(name_);
  filtering_ = false;
  if (if_nametoindex(name_.c_str()) != 0) delete_link(name_);
}

void VirtualInterface::set_up(bool up) {
  const netlink::Socket socket = connect_netlink();
  const Link which(rtnl_link_alloc()), changes(rtnl_link_alloc());
  rtnl_link_set_ifindex(which.get(), static_cast<int>(index_));
  if (up) {
    rtnl_link_set_flags(changes.get(), IFF_UP);
  } else {
    rtnl_link_unset_flags(changes.get(), IFF_UP);
  }
  const int result = rtnl_link_change(socket.get(), which.get(), changes.get(), 0);
  if (result < 0 && up) throw KernelError(fmt::format("cannot bring up {}: {}", name_, nl_geterror(result)));
}

void VirtualInterface::filter() {
  if (filtering_ || settings_.accept) return;
  remove_table(name_);
  std::string list;
  for (const auto& address : settings_.addresses) list += (list.empty() ? "" : ", ") + to_string(address);
  const std::string table = table_of(name_);
  std::string commands = fmt::format(
      "add table inet {0}; add chain inet {0} input {{ type filter hook input priority -10; }};", table);
  if (!settings_.ipv4) {
    commands += fmt::format(
        "add rule inet {} input icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept;", table);
  }
  commands += fmt::format("add rule inet {} input {} daddr {{ {} }} drop", table,
                          settings_.ipv4 ? "ip" : "ip6", list);
  if (const std::string complaint = nftables(commands); !complaint.empty()) {
    throw KernelError("cannot refuse packets to the virtual addresses (accept = false): " + complaint);
  }
  filtering_ = true;
}

std::vector<std::string> VirtualInterface::prepare() {
  try {
    if (index_ == 0 || if_nametoindex(name_.c_str()) != index_) {
      remove();
      make();
    }
    filter();
  } catch (const KernelError& error) {
    return {error.what()};
  }
  return {};
}

std::vector<std::string> VirtualInterface::own() {
  std::vector<std::string> refused = prepare();
  if (index_ == 0) return refused;
  try {
    set_up(true);
    std::set<KernelInterface::Address> addresses;
    for (const auto& address : settings_.addresses) addresses.insert({address, 128});
    const auto more = kernel_->set_addresses(addresses);
    refused.insert(refused.end(), more.begin(), more.end());
  } catch (const KernelError& error) {
    refused.emplace_back(error.what());
  }
  return refused;
}

void VirtualInterface::release() {
  if (kernel_) kernel_->set_addresses({});
}

void VirtualInterface::rest() {
  if (index_ == 0) return;
  release();
  try {
    set_up(false);
  } catch (const KernelError&) {  // it is gone, with the interface below
  }
}

void remove_leftover_interfaces() {
  std::vector<std::string> found;
  std::error_code ignored;
  // Not /sys: that shows the network namespace it was mounted in.
  struct if_nameindex* list = if_nameindex();
  for (auto* entry = list; entry != nullptr && entry->if_index != 0; ++entry) {
    if (std::strncmp(entry->if_name, kPrefix, std::strlen(kPrefix)) == 0) found.emplace_back(entry->if_name);
  }
  if (list != nullptr) if_freenameindex(list);
  const netlink::Socket socket = connect_netlink();
  for (const std::string& name : found) {
    rtnl_link* link = nullptr;
    if (rtnl_link_get_kernel(socket.get(), 0, name.c_str(), &link) < 0) continue;
    const Link owner(link);
    const nl_addr* mac = rtnl_link_get_addr(link);
    constexpr std::uint8_t kVirtual[] = {0x00, 0x00, 0x5E, 0x00};
    const bool ours = rtnl_link_is_macvlan(link) != 0 && mac != nullptr && nl_addr_get_len(mac) == 6 &&
                      std::memcmp(nl_addr_get_binary_addr(mac), kVirtual, sizeof kVirtual) == 0;
    if (!ours) continue;
    remove_table(name);
    delete_link(name);
  }
}

}  // namespace fabric::daemon
