// Faults of a software HCA in a guest: lab_control PATH.ctl REQUEST. Prints the answer, which control.hpp
// describes.
#include <cstdio>
#include <exception>

#include "verbs/softhca/control_client.hpp"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    const std::string answer = fabric::softhca::control(argv[1], argv[2]);
    std::puts(answer.c_str());
    return answer.find("\"ok\":true") == std::string::npos ? 1 : 0;
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "lab_control: %s\n", problem.what());
    return 1;
  }
}
