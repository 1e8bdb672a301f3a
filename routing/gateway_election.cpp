#include "routing/gateway_election.hpp"
