// In a guest: the topology of the running machine is what firmware and devices of that machine say.
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"
#include "memory/expected_machines.h"
#include "memory/topology.h"

namespace hybridgen {
namespace {

TEST(TopologyGuestTest, EveryNodeIsClassifiedWithItsEvidence) {
  const char* const name = getenv("GUEST_MACHINE");
  ASSERT_NE(name, nullptr) << "this test runs in a guest";
  for (const ExpectedMachine& machine : ExpectedMachines()) {
    if (machine.name == std::string(name)) return ExpectTopology(ReadTopology(), machine);
  }
  FAIL() << "no expectation for " << name;
}

}  // namespace
}  // namespace hybridgen
