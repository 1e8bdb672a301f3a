// Whether every host of the lab reaches every other, asked of the hosts' kernels: ICMP and ICMPv6 echo from
// within each network namespace, all pairs at once, from this one process.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "tools/lab/addresses.hpp"
#include "tools/lab/host_namespace.hpp"

namespace fabric::tools::lab {

class Reachability {
 public:
  struct Member {
    std::string name;
    AddressPair addresses;
    HostNamespace net;
  };
  /// Opens the sockets. Throws Error if that fails.
  explicit Reachability(std::vector<Member> members);
  ~Reachability();
  Reachability(const Reachability&) = delete;
  Reachability& operator=(const Reachability&) = delete;

  /// Asks until every ordered pair has answered in both families, or `deadline` has come, or `stop` (called
  /// now and then) says so. Returns whether all have.
  bool wait(std::chrono::steady_clock::time_point deadline, const std::function<bool()>& stop);

  [[nodiscard]] std::size_t answered() const { return answered_; }
  [[nodiscard]] std::size_t expected() const { return waiting_.size(); }
  /// "h1 to h3 (IPv6)", at most `limit` of them.
  [[nodiscard]] std::vector<std::string> missing(std::size_t limit) const;

 private:
  struct Pair {
    std::size_t from, to;
    int family;
    bool answered = false;
  };
  struct Sockets {
    int v4 = -1, v6 = -1;
  };
  void ask();
  void collect(int socket, int family, std::size_t from);

  std::vector<Member> members_;
  std::vector<Sockets> sockets_;
  std::vector<Pair> waiting_;
  std::size_t answered_ = 0;
};

}  // namespace fabric::tools::lab
