// Who may use a backend, when: before binding, after fork, several at once, from several threads.
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "tests/abi/client.h"

namespace hybridgen {
namespace {

TEST(LifetimeTest, DestroyingNullIsFine) {
  TheLibrary().backend_destroy(nullptr);
  TheLibrary().plan_destroy(nullptr);
}

TEST(LifetimeTest, VersionAndInformation) {
  EXPECT_EQ(TheLibrary().abi_version(), HG_ABI_VERSION);
  EXPECT_NE(TheLibrary().last_error(), nullptr);
  EXPECT_NE(std::string(TheLibrary().build_info()).find("portable"), std::string::npos);
}

TEST(LifetimeTest, UseBeforeBinding) {
  for (hg_binding binding : {HG_BINDING_IDENTITY, HG_BINDING_TIERED}) {
    const hg_config config = ValidConfig(binding);
    hg_backend* backend = nullptr;
    ASSERT_TRUE(Succeeds(TheLibrary().backend_create(&config, &backend)));
    const hg_layer layer = ValidLayer();
    int32_t index = 0;
    ASSERT_TRUE(Succeeds(TheLibrary().backend_add_layer(backend, &layer, &index)));
    const Step step;
    const hg_batch batch = step.Batch();
    hg_plan* plan = nullptr;
    hg_status status = TheLibrary().backend_plan_step(backend, &batch, &plan);
    if (status == HG_OK) {
      std::vector<float> memory(20 * Client::kQueryHeads * Client::kHeadSize);
      const hg_tensor tensor = {memory.data(), Client::kQueryHeads * Client::kHeadSize, Client::kHeadSize};
      status = TheLibrary().backend_forward(backend, plan, 0, &tensor, &tensor, &tensor, &tensor);
    }
    EXPECT_TRUE(Fails(status, HG_FAILED_PRECONDITION, {"bound"}));
    TheLibrary().plan_destroy(plan);
    TheLibrary().backend_destroy(backend);
  }
}

TEST(LifetimeTest, PlansAndBackendsGoInEitherOrder) {
  hg_plan* survivor = nullptr;
  {
    Client client(HG_BINDING_TIERED, HG_DEVICE_EMULATED);
    const Step step;
    const hg_batch batch = step.Batch();
    ASSERT_TRUE(Succeeds(TheLibrary().backend_plan_step(client.backend(), &batch, &survivor)));
  }
  TheLibrary().plan_destroy(survivor);
}

TEST(LifetimeTest, MessagesBelongToTheirThread) {
  hg_backend* backend = nullptr;
  EXPECT_TRUE(Fails(TheLibrary().backend_create(nullptr, &backend), HG_INVALID_ARGUMENT, {"config"}));
  std::thread([] {
    EXPECT_TRUE(Fails(TheLibrary().backend_set_streaming_share(nullptr, 0), HG_INVALID_ARGUMENT, {"backend"}));
  }).join();
  EXPECT_NE(std::string(TheLibrary().last_error()).find("config"), std::string::npos);
}

// Each engine of a process owns its workers, pools and statistics.
TEST(LifetimeTest, TwoBackendsTakeTurns) {
  for (hg_device_kind kind : {HG_DEVICE_CPU, HG_DEVICE_EMULATED}) {
    Client first(HG_BINDING_TIERED, kind);
    Client second(HG_BINDING_IDENTITY, kind);
    for (int i = 0; i < 5; ++i) {
      EXPECT_TRUE(first.Works());
      EXPECT_TRUE(second.Works());
    }
  }
}

TEST(LifetimeTest, ThreadsWithTheirOwnBackends) {
  const auto work = [](hg_binding binding, hg_device_kind kind) {
    for (int round = 0; round < 3; ++round) {
      Client client(binding, kind);
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(client.Works());
      EXPECT_TRUE(Fails(TheLibrary().backend_set_streaming_share(client.backend(), 2), HG_INVALID_ARGUMENT, {"share"}));
    }
  };
  std::thread first(work, HG_BINDING_TIERED, HG_DEVICE_EMULATED);
  std::thread second(work, HG_BINDING_TIERED, HG_DEVICE_CPU);
  std::thread third(work, HG_BINDING_IDENTITY, HG_DEVICE_CPU);
  first.join();
  second.join();
  third.join();
}

// Every call that a forked child makes on the inherited backend; the name of the first that does not refuse, or null.
const char* CallAllInChild(Client& client) {
  const Library& library = TheLibrary();
  const auto refused = [&library](hg_status status) {
    return status == HG_FAILED_PRECONDITION && std::string(library.last_error()).find("fork") != std::string::npos;
  };
  const hg_layer layer = ValidLayer();
  int32_t index = 0;
  if (!refused(library.backend_add_layer(client.backend(), &layer, &index))) return "add_layer";
  const hg_pool pool = client.Pool();
  if (!refused(library.backend_bind_identity(client.backend(), &pool))) return "bind_identity";
  const hg_regions regions = client.Regions();
  if (!refused(library.backend_bind_tiered(client.backend(), &regions))) return "bind_tiered";
  if (!refused(library.backend_update_requests(client.backend(), nullptr, 0))) return "update_requests";
  if (!refused(client.Plan(Step()))) return "plan_step";
  if (!refused(client.Forward())) return "forward";
  size_t needed = 0;
  if (!refused(library.backend_stats_json(client.backend(), nullptr, 0, &needed))) return "stats_json";
  if (!refused(library.backend_set_streaming_share(client.backend(), 0.5))) return "set_streaming_share";
  library.plan_destroy(client.plan());
  library.backend_destroy(client.backend());
  return nullptr;
}

TEST(LifetimeTest, AForkedChildIsRefused) {
  for (hg_device_kind kind : {HG_DEVICE_CPU, HG_DEVICE_EMULATED}) {
    Client client(HG_BINDING_TIERED, kind);
    ASSERT_TRUE(client.Works());
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(20);  // a hang ends the child by a signal
      const char* wrong = CallAllInChild(client);
      if (wrong != nullptr) {
        std::string message = std::string(wrong) + " was not refused: " + TheLibrary().last_error() + "\n";
        (void)!write(STDERR_FILENO, message.data(), message.size());
      }
      _exit(wrong == nullptr ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_TRUE(client.Works());  // the parent goes on
  }
}

}  // namespace
}  // namespace hybridgen
