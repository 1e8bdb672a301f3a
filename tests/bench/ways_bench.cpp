// What a change of the map costs one host: making the map from the advertisements, and both ways to
// everybody. Each host computes its own part. TorusWhole is what one machine would need to compute the tables
// of all hosts: compare OpenSM's engines, which take 0.6 to 4 s for the 1,024 switches of a 32 x 32 torus.
#include <benchmark/benchmark.h>

#include "routing/ways.hpp"
#include "tests/unit/cabling.hpp"

namespace fabric::routing {
namespace {

void measure(benchmark::State& state, const Cabling& cabling) {
  std::vector<const Advertisement*> advertisements;
  for (const auto& advertisement : cabling.advertisements) advertisements.push_back(&advertisement);
  Ways ways;
  for (auto _ : state) {
    const Topology topology = make_topology(Cabling::guid(1), advertisements, cabling.table);
    ways.compute(topology);
    benchmark::DoNotOptimize(ways.hash());
  }
  state.counters["hosts"] = static_cast<double>(cabling.advertisements.size());
}

void cut(Cabling& cabling, unsigned host, unsigned port) {
  Link& link = cabling.advertisements[host].links[port];
  link.up = false;
  for (Link& other : cabling.advertisements[link.neighbour.value() - Cabling::guid(0).value()].links)
    if (other.neighbour == Cabling::guid(host) && other.neighbour_port == link.port) other.up = false;
}

void Ring(benchmark::State& state) {
  measure(state, ring(static_cast<unsigned>(state.range(0))));
}
void RingCut(benchmark::State& state) {
  Cabling cabling = ring(static_cast<unsigned>(state.range(0)));
  cut(cabling, 2, 0);
  measure(state, cabling);
}
void Chain(benchmark::State& state) {
  measure(state, chain(static_cast<unsigned>(state.range(0))));
}
void Torus(benchmark::State& state) {
  const auto side = static_cast<unsigned>(state.range(0));
  measure(state, torus(side, side));
}
void TorusWhole(benchmark::State& state) {
  const auto side = static_cast<unsigned>(state.range(0));
  const Cabling cabling = torus(side, side);
  std::vector<const Advertisement*> advertisements;
  for (const auto& advertisement : cabling.advertisements) advertisements.push_back(&advertisement);
  TreePair trees;
  for (auto _ : state) {
    const Topology topology = make_topology(Cabling::guid(1), advertisements, cabling.table);
    for (std::uint32_t to = 0; to < topology.hosts.size(); ++to) {
      trees.compute(topology, to, false);
      for (std::uint32_t from = 0; from < topology.hosts.size(); ++from)
        benchmark::DoNotOptimize(trees.arc(0, from) ^ trees.arc(1, from));
    }
  }
  state.counters["hosts"] = static_cast<double>(cabling.advertisements.size());
}
void TorusCut(benchmark::State& state) {
  const auto side = static_cast<unsigned>(state.range(0));
  Cabling cabling = torus(side, side);
  cut(cabling, 2, 0);
  measure(state, cabling);
}

BENCHMARK(Ring)->Arg(5)->Arg(64)->Arg(1024)->Unit(benchmark::kMicrosecond);
BENCHMARK(RingCut)->Arg(5)->Arg(64)->Arg(1024)->Unit(benchmark::kMicrosecond);
BENCHMARK(Chain)->Arg(5)->Arg(64)->Arg(1024)->Unit(benchmark::kMicrosecond);
BENCHMARK(Torus)->Arg(4)->Arg(8)->Arg(32)->Unit(benchmark::kMicrosecond);
BENCHMARK(TorusWhole)->Arg(32)->Unit(benchmark::kMicrosecond);
BENCHMARK(TorusCut)->Arg(4)->Arg(8)->Arg(32)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace fabric::routing
