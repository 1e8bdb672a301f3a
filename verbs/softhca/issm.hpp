// The issm device files: while one is open, the port's capability mask has IsSM.
#pragma once

namespace fabric::softhca {

inline constexpr char kIssmPath[] = "/dev/infiniband/issm";

/// A descriptor (close-on-exec) that holds file issmN, or -1 with errno. N counts the ports of all HCAs.
int hold_issm(int number);

}  // namespace fabric::softhca
