// The main() of a fuzz target where there is no libFuzzer: a short run of a fixed number of inputs, the same
// ones every time.
//
//   PROGRAM CORPUS INPUT
//
// First everything in CORPUS (which may be missing), then FABRIC_FUZZ_RUNS inputs (3000) made from it with
// the seed FABRIC_FUZZ_SEED (1). What is being run is kept in the file INPUT, which stays when the target
// fails; a fuzz target built with libFuzzer takes it as its argument.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kLongest = 8192;

class Mutations {
 public:
  Mutations(std::uint64_t seed, std::vector<Bytes> corpus) : random_(seed), corpus_(std::move(corpus)) {}

  /// Something of the corpus, or random bytes, changed in some places.
  Bytes next() {
    Bytes bytes =
        corpus_.empty() || below(4) == 0 ? random_bytes(below(1024)) : corpus_[below(corpus_.size())];
    for (std::size_t left = 1 + below(8); left > 0; --left) change(bytes);
    if (bytes.size() > kLongest) bytes.resize(kLongest);
    return bytes;
  }

 private:
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(random_() % count); }

  Bytes random_bytes(std::size_t count) {
    Bytes bytes(count);
    std::generate(bytes.begin(), bytes.end(), [this] { return static_cast<std::uint8_t>(random_()); });
    return bytes;
  }

  void change(Bytes& bytes) {
    const std::size_t place = below(bytes.size() + 1);
    const std::size_t rest = bytes.size() - place;
    const auto at = bytes.begin() + static_cast<std::ptrdiff_t>(place);
    switch (below(6)) {
      case 0: {
        const Bytes inserted = random_bytes(1 + below(32));
        bytes.insert(at, inserted.begin(), inserted.end());
        return;
      }
      case 1:
        bytes.erase(at, at + static_cast<std::ptrdiff_t>(below(rest + 1)));
        return;
      case 2: {
        if (corpus_.empty()) return;
        const Bytes& other = corpus_[below(corpus_.size())];
        const std::size_t first = below(other.size() + 1);
        bytes.insert(at, other.begin() + static_cast<std::ptrdiff_t>(first), other.end());
        return;
      }
      case 3:
        if (rest > 0) *at = static_cast<std::uint8_t>(*at ^ 1U << below(8));
        return;
      case 4: {
        static constexpr std::uint8_t kEnds[] = {0, 1, 0x7F, 0x80, 0xFF};
        std::fill_n(at, std::min<std::size_t>(rest, 1 + below(8)), kEnds[below(std::size(kEnds))]);
        return;
      }
      default:
        if (rest > 0) *at = static_cast<std::uint8_t>(random_());
    }
  }

  std::mt19937_64 random_;
  const std::vector<Bytes> corpus_;
};

std::vector<Bytes> read_corpus(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> paths;
  if (std::filesystem::exists(directory))
    for (const auto& entry : std::filesystem::directory_iterator(directory)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

void run(const Bytes& bytes, const std::filesystem::path& input) {
  std::ofstream file(input, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + input.string());
  // Of just this size on the heap, so that a sanitizer sees what reads beyond it.
  const Bytes exact(bytes.begin(), bytes.end());
  static_cast<void>(LLVMFuzzerTestOneInput(exact.data(), exact.size()));
}

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::stoull(value);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::filesystem::path input = arguments[2];
  std::filesystem::create_directories(input.parent_path());
  const std::vector<Bytes> corpus = read_corpus(arguments[1]);
  const std::uint64_t seed = setting("FABRIC_FUZZ_SEED", 1), runs = setting("FABRIC_FUZZ_RUNS", 3000);
  std::printf("%zu inputs of the corpus, %llu of seed %llu; the present one is %s\n", corpus.size(),
              static_cast<unsigned long long>(runs), static_cast<unsigned long long>(seed), input.c_str());
  std::fflush(stdout);
  for (const Bytes& bytes : corpus) run(bytes, input);
  Mutations mutations(seed, corpus);
  for (std::uint64_t i = 0; i < runs; ++i) run(mutations.next(), input);
  std::filesystem::remove(input);
}
