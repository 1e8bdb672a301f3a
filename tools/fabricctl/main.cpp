// fabricctl: shows and steers a running fabricd.
#include "tools/fabricctl/commands.hpp"

int main(int argc, char** argv) {
  return fabric::tools::run_fabricctl({argv + 1, argv + argc});
}
