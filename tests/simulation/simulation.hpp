// A fabric in one process: the same routing::Node on every host, cables with delays and faults, a simulated
// clock, one seed. Every run with the same seed is the same run.
//
// The model of a cable is that of a reliable connection between two daemons. While it lives, messages arrive
// in order after a random delay. The two ends learn of its beginning and of its end at different moments. A
// fault that is announced closes both ends within milliseconds. A silent one loses everything from then on;
// an end notices by its heartbeat (tens of milliseconds), or, if it has bad luck, only by the dead interval
// of the Node. Nothing passes on a connection that has lost something: a reliable queue pair does not skip. A
// new one begins when both ends are closed and both directions of the cable work.
//
// check_loops() runs after every event that changes what some host forwards; see there. The other checks are
// for when it is quiet.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "routing/node.hpp"

namespace fabric::simulation {

/// An invariant does not hold; what() says which, where and when.
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  std::uint64_t seed = 1;
  bool verbose = false;
  Duration message_delay = std::chrono::microseconds(300);  ///< at most, per cable
  Duration connect_delay = std::chrono::milliseconds(50);   ///< at most, from a whole cable to a connection
  routing::NodeTimers timers;
  bool check_loops = true;
};

class Simulation {
 public:
  explicit Simulation(Options options);

  // --- construction. Hosts and cables are known by number.
  /// A host that is off. Its GUID is random unless given.
  int add_host(std::string name, std::optional<Guid> guid = {});
  int add_cable(int a, int b, std::uint32_t cost = 1);
  /// The cable is pulled out for good, its ports are free for another.
  void remove_cable(int cable);

  /// A host that is off and has no cables stays so: start() does nothing any more.
  void retire(int host) { hosts_[static_cast<std::size_t>(host)].retired = true; }

  // --- faults
  void start(int host);  ///< its daemon, with what it has on stable storage
  void kill(int host, bool silent);
  void cut(int cable, bool silent);
  void cut_direction(int cable, bool from_a);  ///< silent, one way only
  void mend(int cable);
  void drain(int host, bool drained);
  /// A host that is off forgets its LID table (a new disk); with `clock`, that its clock is wrong as well, so
  /// that its next start has a lower incarnation than the ones before.
  void forget(int host, bool clock);
  /// A host that is off gets back the first LID table and incarnation that it ever had (an old backup).
  void restore(int host);
  /// While a GUID is there twice nobody can know who is meant: loops and disagreement are not looked for.
  void set_ambiguous(bool ambiguous);

  // --- time
  void run_for(Duration time);
  /// Until nothing but keepalives is under way for `quiet`; throws a Violation after `limit`. Returns when
  /// the last change was.
  TimePoint run_until_quiet(Duration quiet, Duration limit);
  [[nodiscard]] TimePoint now() const { return now_; }

  // --- checks. They throw a Violation.
  /// No frame can go in a circle: for every host, LID and mark, follow the tables as they are at this moment.
  void check_loops();
  /// All that must hold when it is quiet, of every n-th host towards all.
  void check_quiet(int every = 1);

  // --- inspection
  [[nodiscard]] std::size_t hosts() const { return hosts_.size(); }
  [[nodiscard]] std::size_t cables() const { return cables_.size(); }
  [[nodiscard]] Guid guid(int host) const { return hosts_[static_cast<std::size_t>(host)].guid; }
  [[nodiscard]] bool was_ambiguous() const { return was_ambiguous_; }
  [[nodiscard]] std::uint64_t duplicates_noticed() const { return duplicates_noticed_; }
  [[nodiscard]] bool alive(int host) const { return hosts_[static_cast<std::size_t>(host)].node != nullptr; }
  [[nodiscard]] const routing::Node& node(int host) const {
    return *hosts_[static_cast<std::size_t>(host)].node;
  }
  [[nodiscard]] bool works(int cable) const;
  /// The hosts of a cable; nothing if it was removed.
  [[nodiscard]] std::optional<std::pair<int, int>> ends(int cable) const;
  [[nodiscard]] std::mt19937_64& random() { return random_; }
  [[nodiscard]] std::uint64_t messages() const { return messages_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::uint64_t loop_checks() const { return loop_checks_; }
  [[nodiscard]] std::uint64_t moves() const { return moves_; }
  /// Hosts that `from` reaches over cables that work: the naive oracle.
  [[nodiscard]] std::vector<bool> connected(int from) const;

 private:
  struct End {
    int host = 0;
    PortIndex port;
    std::uint64_t opened = 0;                  ///< connection that this end has; 0: none
    std::deque<std::vector<std::byte>> early;  ///< arrived before this end was told of the connection
    TimePoint last_arrival;
  };
  struct Cable {
    std::array<End, 2> ends;
    std::uint32_t cost = 1;
    std::array<bool, 2> passes{true, true};  ///< from end 0, from end 1
    bool removed = false;
    std::uint64_t connection = 0;  ///< the present or last one
    std::array<bool, 2> closed{true, true};
    bool broken = false;  ///< the connection has lost something
    bool connecting = false;
  };
  struct Host {
    std::string name;
    Guid guid;
    std::unique_ptr<routing::Node> node;  ///< null: off
    std::optional<routing::LidTable> kept, oldest;
    std::uint32_t incarnation = 0;
    std::map<PortIndex, std::pair<int, int>> ports;  ///< cable and end
    std::shared_ptr<const routing::ForwardingState> state;
    std::uint64_t timer = 0;  ///< of those scheduled, the one that counts
    std::optional<TimePoint> timer_at;
    bool drained = false, retired = false;
    std::uint64_t forgiven = 0;  ///< disagreements while a GUID was there twice
    HostIndex index = kNoHost;
    TimePoint index_since;
    std::set<HostIndex> former;  ///< all that it ever had
    std::uint64_t map = 0;
  };
  struct Happening {
    TimePoint at;
    std::uint64_t order = 0;
    std::function<void()> what;
    bool operator>(const Happening& other) const {
      return std::pair(at, order) > std::pair(other.at, other.order);
    }
  };

  void after(Duration delay, std::function<void()> what);
  Duration upto(Duration most);
  void deliver(int host, const routing::Event& event);
  void carry_out(int host, std::vector<routing::Action>& actions);
  void note_table(int host, const routing::LidTable& table);
  void transmit(int host, PortIndex port, std::vector<std::byte> message);
  void try_connect(int cable);
  void open_end(int cable, int end, std::uint64_t connection);
  void close_end(int cable, int end, const std::string& reason);
  void detect(int cable, bool announced);
  [[nodiscard]] bool port_alive(const Host& host, PortIndex port) const;
  /// Where a frame ends: the host that takes it, or -1.
  int walk(int from, Lid lid, std::vector<int>* hops, bool* turned) const;
  /// The next host of a frame, changing its LID and mark; -1: dropped, -2: delivered.
  int step(int host, Lid& lid, bool& turned) const;
  [[nodiscard]] bool damped() const;
  void say(const std::string& text) const;
  [[nodiscard]] std::string dump() const;
  [[noreturn]] void violated(const std::string& text) const;

  Options options_;
  std::mt19937_64 random_;
  TimePoint now_{};
  TimePoint last_change_{};
  std::uint64_t order_ = 0;
  std::priority_queue<Happening, std::vector<Happening>, std::greater<>> queue_;
  std::vector<Host> hosts_;
  std::deque<Cable> cables_;
  std::uint64_t connections_ = 0;
  std::uint64_t messages_ = 0, bytes_ = 0, loop_checks_ = 0, moves_ = 0, duplicates_noticed_ = 0;
  bool forwarding_changed_ = false;
  bool ambiguous_ = false, was_ambiguous_ = false;
  std::vector<std::uint32_t> colours_;
};

}  // namespace fabric::simulation
