#include "verbs/handles.hpp"

#include <fcntl.h>

#include <cerrno>

namespace fabric::verbs {

void set_nonblocking(int descriptor) {
  const int flags = fcntl(descriptor, F_GETFL);
  if (flags < 0 || fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) < 0)
    throw VerbsError(errno, "fcntl(O_NONBLOCK)");
}

}  // namespace fabric::verbs
