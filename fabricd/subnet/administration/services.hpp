// Services that ports have advertised. See services.cpp.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "fabricd/subnet/administration/query.hpp"

namespace fabric::daemon::subnet::administration {

class Services {
 public:
  struct Service {
    Record record;
    std::optional<Gid> owner;             ///< the port that advertised it
    std::optional<TimePoint> lease_ends;  ///< nothing: never
  };

  [[nodiscard]] Result records(const Query& query);
  [[nodiscard]] Result advertise(const Query& query);
  [[nodiscard]] Result withdraw(const Query& query);
  void forget() { services_.clear(); }

 private:
  /// Drops those whose lease has run out.
  void expire(TimePoint now);
  [[nodiscard]] std::vector<Service>::iterator find(const Record& identity);

  std::vector<Service> services_;
};

}  // namespace fabric::daemon::subnet::administration
