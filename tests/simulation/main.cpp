// simulation [--seed N] [--count N] [--shape ring|chain|any|join|rings|ladder|mesh] [--hosts N] [--steps N]
// [--verbose] simulation --converge N [--seed N]
//
// Runs random schedules of faults on simulated fabrics and checks the invariants of docs/routing.md after
// each step. Every schedule has a seed; one that fails is printed, and --seed N (with the same other
// arguments) runs it again. --converge brings up a ring of N hosts, cuts and mends a cable, and says how long
// each took.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/simulation/simulation.hpp"

namespace fabric::simulation {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Arguments {
  std::uint64_t seed = 1;
  std::uint64_t count = 1;
  std::string shape = "mixed";
  unsigned hosts = 0;  ///< 0: by seed
  unsigned steps = 25;
  unsigned converge = 0;
  bool verbose = false;
};

class Schedule {
 public:
  Schedule(const Arguments& arguments, std::uint64_t seed)
      : arguments_(arguments), simulation_(Options{.seed = seed, .verbose = arguments.verbose}) {}

  void run() {
    build();
    cold_start();
    for (unsigned i = 0; i < arguments_.steps; ++i) {
      step();
      switch (pick(10)) {
        case 0:
          quiet();
          break;
        case 1:
        case 2:
        case 3:
          simulation_.run_for(milliseconds(pick(1500)));
          break;
        default:
          simulation_.run_for(std::chrono::microseconds(pick(100'000)));
      }
    }
    quiet();
    for (int cable = 0; cable < cables(); ++cable) simulation_.mend(cable);
    for (int host = 0; host < hosts(); ++host) simulation_.start(host);
    quiet();
    if (named_ && !simulation_.was_ambiguous() && simulation_.moves() != 0)
      throw Violation("a host with a number in its name has moved");
  }

  [[nodiscard]] const Simulation& simulation() const { return simulation_; }

 private:
  unsigned pick(unsigned below) { return static_cast<unsigned>(simulation_.random()() % below); }
  [[nodiscard]] int hosts() const { return static_cast<int>(simulation_.hosts()); }
  [[nodiscard]] int cables() const { return static_cast<int>(simulation_.cables()); }
  int add_cable(int a, int b) {
    return pick(2) == 0 ? simulation_.add_cable(a, b) : simulation_.add_cable(b, a);
  }

  /// Hosts in any order round the ring, cables in any order and direction, so ports in any order.
  void build() {
    std::string shape = arguments_.shape;
    if (shape == "mixed")
      shape = std::array{"ring", "ring", "chain", "any", "join", "rings", "ladder", "mesh"}[pick(8)];
    const unsigned count = arguments_.hosts != 0 ? arguments_.hosts : 2 + pick(7);
    named_ = pick(3) != 0;
    for (unsigned i = 0; i < count; ++i)
      order_.push_back(simulation_.add_host(named_ ? "h" + std::to_string(i + 1)
                                                   : std::string("host-") + static_cast<char>('a' + i % 26)));
    if (pick(2) == 0) std::shuffle(order_.begin(), order_.end(), simulation_.random());
    if (shape == "rings") {  // two that share a host
      const unsigned half = std::max(2u, count / 2);
      for (unsigned i = 0; i < count; ++i) add_cable(order_[i], order_[i == half ? 0 : (i + 1) % count]);
      add_cable(order_[0], order_[std::min(half + 1, count - 1)]);
      return;
    }
    if (shape == "ladder") {
      const unsigned half = count / 2;
      for (unsigned i = 0; i + 1 < half; ++i) {
        add_cable(order_[i], order_[i + 1]);
        add_cable(order_[half + i], order_[half + i + 1]);
      }
      for (unsigned i = 0; i < half; ++i) add_cable(order_[i], order_[half + i]);
      if (count % 2 != 0)
        add_cable(order_[count - 1], order_[0]), add_cable(order_[count - 1], order_[half - 1]);
      return;
    }
    if (shape == "mesh") {
      for (unsigned i = 0; i < count; ++i)
        for (unsigned j = 0; j < i; ++j) add_cable(order_[j], order_[i]);
      return;
    }
    if (shape == "any") {
      for (unsigned i = 1; i < count; ++i) add_cable(order_[pick(i)], order_[i]);
      for (unsigned extra = pick(count + 3); extra > 0; --extra) {
        const int a = order_[pick(count)], b = order_[pick(count)];
        if (a != b) add_cable(a, b);
      }
      return;
    }
    std::vector<std::pair<int, int>> cabling;
    for (unsigned i = 0; i + 1 < count; ++i) cabling.emplace_back(order_[i], order_[i + 1]);
    if (shape == "join" && count >= 4) {  // two rings, to be opened and joined
      cabling.erase(cabling.begin() + (count / 2 - 1));
      closing_.push_back(add_cable(order_[0], order_[count / 2 - 1]));
      closing_.push_back(add_cable(order_[count / 2], order_[count - 1]));
    } else if (shape != "chain") {
      cabling.emplace_back(order_[count - 1], order_[0]);
    }
    std::shuffle(cabling.begin(), cabling.end(), simulation_.random());
    for (const auto& [a, b] : cabling) add_cable(a, b);
    ring_ = true;
  }

  void cold_start() {
    const unsigned spread = 1 + pick(500);
    std::vector<int> order = order_;
    std::shuffle(order.begin(), order.end(), simulation_.random());
    for (const int host : order) {
      simulation_.start(host);
      simulation_.run_for(milliseconds(pick(spread)));
    }
    if (pick(2) == 0) quiet();
  }

  void step() {
    const int cable = static_cast<int>(pick(static_cast<unsigned>(cables())));
    const int host = static_cast<int>(pick(static_cast<unsigned>(hosts())));
    switch (pick(19)) {
      case 0:
      case 1:
      case 2:
        return simulation_.cut(cable, false);
      case 3:
      case 4:
        return simulation_.cut(cable, true);
      case 5:
        return simulation_.cut_direction(cable, pick(2) == 0);
      case 6:
        return simulation_.kill(host, false);
      case 7:
        return simulation_.kill(host, true);
      case 8:
        if (simulation_.alive(host)) return;
        if (pick(4) == 0) simulation_.forget(host, pick(2) == 0);
        if (pick(4) == 0) simulation_.restore(host);
        return simulation_.start(host);
      case 9:
        for (int h = 0; h < hosts(); ++h) simulation_.start(h);
        return;
      case 10:  // a daemon restarts
        simulation_.kill(host, false);
        simulation_.run_for(milliseconds(pick(50)));
        if (pick(8) == 0) simulation_.forget(host, true);
        return simulation_.start(host);
      case 11:
        if (!closing_.empty()) return join();
        if (ring_ && hosts() < 12) return insert(cable);
        return simulation_.mend(cable);
      case 12:
        return simulation_.drain(host, true);
      case 13:
        for (int h = 0; h < hosts(); ++h) simulation_.drain(h, false);
        return;
      case 14:
        for (unsigned n = pick(10); n > 0; --n) {  // a bad connector
          simulation_.cut(cable, false);
          simulation_.run_for(milliseconds(pick(100)));
          simulation_.mend(cable);
          simulation_.run_for(milliseconds(pick(300)));
        }
        return;
      case 15:
        if (pick(6) == 0) duplicate(cable);  // seldom: it takes a minute of simulated time
        return;
      default:
        return simulation_.mend(cable);
    }
  }

  /// A host comes between two others that has the GUID of a third (or of one of them), and is taken out
  /// again.
  void duplicate(int cable) {
    const auto ends = simulation_.ends(cable);
    if (!ends) return;
    const int twin = static_cast<int>(pick(static_cast<unsigned>(hosts())));
    simulation_.set_ambiguous(true);
    const int host = simulation_.add_host("twin", simulation_.guid(twin));
    simulation_.remove_cable(cable);
    const int first = add_cable(ends->first, host), second = add_cable(host, ends->second);
    simulation_.start(host);
    simulation_.run_for(milliseconds(pick(8000)));
    simulation_.kill(host, pick(2) == 0);
    simulation_.remove_cable(first);
    simulation_.remove_cable(second);
    simulation_.retire(host);
    add_cable(ends->first, ends->second);
    // The one that stood back does so for half a minute; if the wrong one did, it comes back after that.
    simulation_.run_for(seconds(40));
    simulation_.run_until_quiet(milliseconds(500), seconds(30));
    simulation_.set_ambiguous(false);
    simulation_.check_quiet();
  }

  /// Opens both rings and makes one of them.
  void join() {
    for (const int cable : closing_) simulation_.remove_cable(cable);
    const std::size_t half = order_.size() / 2;
    simulation_.run_for(milliseconds(pick(300)));
    add_cable(order_[0], order_[half]);
    simulation_.run_for(milliseconds(pick(300)));
    add_cable(order_[half - 1], order_.back());
    closing_.clear();
  }

  /// A host joins between two others: their cable goes, two come.
  void insert(int cable) {
    const auto ends = simulation_.ends(cable);
    if (!ends) return;
    const int host = simulation_.add_host(named_ ? "h" + std::to_string(hosts() + 1) : "guest");
    order_.push_back(host);
    simulation_.remove_cable(cable);
    simulation_.run_for(milliseconds(pick(300)));
    add_cable(ends->first, host);
    simulation_.start(host);
    simulation_.run_for(milliseconds(pick(300)));
    add_cable(host, ends->second);
  }

  /// Longer than the dead interval, then everything must be as it should.
  void quiet() {
    simulation_.run_for(milliseconds(1500));
    simulation_.run_until_quiet(milliseconds(500), seconds(30));
    simulation_.check_quiet();
  }

  Arguments arguments_;
  Simulation simulation_;
  bool named_ = false, ring_ = false;
  std::vector<int> order_;
  std::vector<int> closing_;
};

double ms(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

void converge(const Arguments& arguments) {
  const auto begin = std::chrono::steady_clock::now();
  Simulation simulation(Options{.seed = arguments.seed, .verbose = arguments.verbose, .check_loops = false});
  const int count = static_cast<int>(arguments.converge);
  for (int i = 0; i < count; ++i) simulation.add_host("h" + std::to_string(i + 1));
  for (int i = 0; i < count; ++i) simulation.add_cable(i, (i + 1) % count);
  for (int i = 0; i < count; ++i) simulation.start(i);
  const auto report = [&](const char* what, TimePoint since) {
    const TimePoint last = simulation.run_until_quiet(seconds(2), seconds(120));
    simulation.check_quiet(1 + count / 20);
    std::printf("%s: %d hosts, %.1f ms simulated, %llu messages, %llu bytes, %.1f s real\n", what, count,
                ms(last - since), static_cast<unsigned long long>(simulation.messages()),
                static_cast<unsigned long long>(simulation.bytes()),
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    std::fflush(stdout);
  };
  report("cold start", simulation.now());
  TimePoint since = simulation.now();
  simulation.cut(count / 2, false);
  report("cut", since);
  since = simulation.now();
  simulation.mend(count / 2);
  report("mend", since);
  simulation.check_loops();
}

int run(const Arguments& arguments) {
  if (arguments.converge != 0) {
    converge(arguments);
    return 0;
  }
  std::uint64_t loop_checks = 0, moves = 0, duplicates = 0;
  for (std::uint64_t seed = arguments.seed; seed < arguments.seed + arguments.count; ++seed) {
    Schedule schedule(arguments, seed);
    try {
      schedule.run();
    } catch (const Violation& violation) {
      std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), violation.what());
      return 1;
    }
    loop_checks += schedule.simulation().loop_checks();
    moves += schedule.simulation().moves();
    duplicates += schedule.simulation().duplicates_noticed();
  }
  std::printf(
      "%llu schedules from seed %llu: all invariants hold; %llu checks for loops, %llu moves of LIDs, %llu "
      "duplicate GUIDs "
      "noticed\n",
      static_cast<unsigned long long>(arguments.count), static_cast<unsigned long long>(arguments.seed),
      static_cast<unsigned long long>(loop_checks), static_cast<unsigned long long>(moves),
      static_cast<unsigned long long>(duplicates));
  return 0;
}

}  // namespace
}  // namespace fabric::simulation

int main(int argc, char** argv) {
  fabric::simulation::Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto number = [&] { return std::strtoull(i + 1 < argc ? argv[++i] : "0", nullptr, 0); };
    if (name == "--seed") {
      arguments.seed = number();
    } else if (name == "--count") {
      arguments.count = number();
    } else if (name == "--shape" && i + 1 < argc) {
      arguments.shape = argv[++i];
    } else if (name == "--hosts") {
      arguments.hosts = static_cast<unsigned>(number());
    } else if (name == "--steps") {
      arguments.steps = static_cast<unsigned>(number());
    } else if (name == "--converge") {
      arguments.converge = static_cast<unsigned>(number());
    } else if (name == "--verbose") {
      arguments.verbose = true;
    } else {
      std::fprintf(stderr,
                   "usage: %s [--seed N] [--count N] [--shape ring|chain|any|join|rings|ladder|mesh] "
                   "[--hosts N] [--steps N] "
                   "[--converge N] [--verbose]\n",
                   argv[0]);
      return 2;
    }
  }
  return fabric::simulation::run(arguments);
}
