// Planning, running, requests and statistics refuse bad input; afterwards the backend still works.
#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "tests/abi/client.h"

namespace hybridgen {
namespace {

constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
constexpr int32_t kMin = std::numeric_limits<int32_t>::min();

struct Setup {
  hg_binding binding;
  hg_device_kind device_kind;
};

std::string Name(const Setup& setup) {
  return std::string(setup.device_kind == HG_DEVICE_CPU ? "Cpu" : "Emulated") +
         (setup.binding == HG_BINDING_TIERED ? "Tiered" : "Identity");
}
void PrintTo(const Setup& setup, std::ostream* os) { *os << Name(setup); }

class StepTest : public ::testing::TestWithParam<Setup> {
 protected:
  StepTest() : client_(GetParam().binding, GetParam().device_kind) {}
  ~StepTest() override { EXPECT_TRUE(client_.Works()); }

  void ExpectPlanRefused(const Step& step, std::initializer_list<const char*> words) {
    EXPECT_TRUE(Fails(client_.Plan(step), HG_INVALID_ARGUMENT, words));
    // The refused plan must not be run either.
    EXPECT_TRUE(client_.plan() == nullptr || client_.Forward() != HG_OK);
  }

  Client client_;
};

TEST_P(StepTest, NullPointers) {
  const Library& library = TheLibrary();
  const Step step;
  hg_batch batch = step.Batch();
  EXPECT_TRUE(
      Fails(library.backend_plan_step(nullptr, &batch, &client_.plan()), HG_INVALID_ARGUMENT, {"backend", "null"}));
  EXPECT_TRUE(Fails(library.backend_plan_step(client_.backend(), nullptr, &client_.plan()), HG_INVALID_ARGUMENT,
                    {"batch", "null"}));
  EXPECT_TRUE(
      Fails(library.backend_plan_step(client_.backend(), &batch, nullptr), HG_INVALID_ARGUMENT, {"plan", "null"}));
  batch.query_start = nullptr;
  EXPECT_TRUE(Fails(library.backend_plan_step(client_.backend(), &batch, &client_.plan()), HG_INVALID_ARGUMENT,
                    {"query_start", "null"}));
  batch = step.Batch();
  batch.seq_lens = nullptr;
  EXPECT_TRUE(Fails(library.backend_plan_step(client_.backend(), &batch, &client_.plan()), HG_INVALID_ARGUMENT,
                    {"seq_lens", "null"}));
  batch = step.Batch();
  batch.block_tables = nullptr;
  EXPECT_TRUE(Fails(library.backend_plan_step(client_.backend(), &batch, &client_.plan()), HG_INVALID_ARGUMENT,
                    {"block_tables", "null"}));
}

TEST_P(StepTest, Batch) {
  const Library& library = TheLibrary();
  const Step step;
  const auto refused = [&](const std::function<void(hg_batch&)>& change, std::initializer_list<const char*> words) {
    hg_batch batch = step.Batch();
    change(batch);
    return Fails(library.backend_plan_step(client_.backend(), &batch, &client_.plan()), HG_INVALID_ARGUMENT, words);
  };
  EXPECT_TRUE(refused([](hg_batch& b) { b.struct_size = 0; }, {"struct_size", "accepted"}));
  EXPECT_TRUE(refused([](hg_batch& b) { b.num_sequences = -1; }, {"num_sequences", "accepted"}));
  EXPECT_TRUE(refused([](hg_batch& b) { b.num_sequences = kMax; }, {"num_sequences", "accepted"}));
  EXPECT_TRUE(refused([](hg_batch& b) { b.block_table_stride = -1; }, {"block_table_stride", "accepted"}));
  EXPECT_TRUE(refused([](hg_batch& b) { b.block_table_stride = 1; }, {"table"}));
  EXPECT_TRUE(refused([](hg_batch& b) { b.num_slots = -1; }, {"num_slots", "accepted"}));
}

TEST_P(StepTest, SequenceShapes) {
  Step step;
  step.query_start = {1, 20};
  ExpectPlanRefused(step, {"query_start", "accepted"});
  step.query_start = {-3, 20};
  ExpectPlanRefused(step, {"query_start", "accepted"});
  step.query_start = {0, -1};
  ExpectPlanRefused(step, {"query_start", "accepted"});
  step.query_start = {0, 21};  // seq_len shorter than the query
  ExpectPlanRefused(step, {"seq_len", "query tokens"});
  step.query_start = {0, kMax};
  ExpectPlanRefused(step, {"seq_len", "query tokens"});
  for (int32_t length : {-1, 0, 19, kMin}) {
    step = Step();
    step.seq_lens = {length};
    ExpectPlanRefused(step, {"seq_len"});
  }
  for (int32_t length : {33, 1000, kMax}) {  // more tokens than the table's two blocks hold
    step = Step();
    step.seq_lens = {length};
    ExpectPlanRefused(step, {"table"});
  }
  step = Step();
  step.seq_lens = {20, 16};
  step.query_start = {0, 20, 19};  // not monotone
  step.tables = {1, 2, 3, 4};
  ExpectPlanRefused(step, {"query_start", "falls"});
}

TEST_P(StepTest, BlockIds) {
  for (int32_t block : {-1, Client::kBlocks, kMax, kMin}) {
    SCOPED_TRACE(block);
    Step step;
    step.tables = {1, block};
    // The identity binding learns each layer's number of blocks when it runs.
    hg_status status = client_.Plan(step);
    if (status == HG_OK) status = client_.Forward();
    EXPECT_TRUE(Fails(status, HG_INVALID_ARGUMENT, {"block", "accepted: 0 to"}));
  }
  // Behind the sequence's last block a table may hold anything.
  Step step;
  step.tables = {1, 2, -5, kMax};
  EXPECT_TRUE(Succeeds(client_.Plan(step)));
  EXPECT_TRUE(Succeeds(client_.Forward()));
}

// A padded batch: sequences that compute nothing, the null block among their blocks.
TEST_P(StepTest, SequencesWithoutQueryTokens) {
  Step step;
  step.query_start = {0, 0, 20, 20};
  step.seq_lens = {0, 20, 1};
  step.tables = {0, 0, 1, 2, 0, 0};
  EXPECT_TRUE(Succeeds(client_.Plan(step)));
  EXPECT_TRUE(Succeeds(client_.Forward()));
}

// What a refused step would have written stays as it was.
TEST_P(StepTest, ARefusedStepChangesNothing) {
  ASSERT_TRUE(client_.Works());
  Step step;
  step.query_start = {0, 16, 20};
  step.seq_lens = {16, 4};
  step.tables = {1, 0, -1, 0};  // block 1 anew, then a bad id
  ExpectPlanRefused(step, {"block"});
  step.query_start = {0, 1};
  step.seq_lens = {21};
  step.tables = {1, 2};
  ASSERT_TRUE(Succeeds(client_.Plan(step)));
  ASSERT_TRUE(Succeeds(client_.Forward()));
  const hg_tensor output = client_.Output();
  EXPECT_LE(std::abs(static_cast<float*>(output.data)[0]), 1.0f);
}

TEST_P(StepTest, EmptySteps) {
  Step step;
  step.query_start = {0};
  step.seq_lens = {};
  const hg_batch batch = step.Batch();
  EXPECT_TRUE(Succeeds(TheLibrary().backend_plan_step(client_.backend(), &batch, &client_.plan())));
  EXPECT_TRUE(Succeeds(client_.Forward()));
}

TEST_P(StepTest, ForwardArguments) {
  const Library& library = TheLibrary();
  ASSERT_TRUE(Succeeds(client_.Plan(Step())));
  const hg_tensor query = client_.Query(), key = client_.Key(), value = client_.Value(), output = client_.Output();
  const auto forward = [&](int layer, const hg_tensor* q, const hg_tensor* k, const hg_tensor* v, const hg_tensor* o) {
    return library.backend_forward(client_.backend(), client_.plan(), layer, q, k, v, o);
  };
  EXPECT_TRUE(Fails(library.backend_forward(nullptr, client_.plan(), 0, &query, &key, &value, &output),
                    HG_INVALID_ARGUMENT, {"backend", "null"}));
  EXPECT_TRUE(Fails(library.backend_forward(client_.backend(), nullptr, 0, &query, &key, &value, &output),
                    HG_INVALID_ARGUMENT, {"plan", "null"}));
  for (int layer : {-1, 1, kMax, kMin}) {
    EXPECT_TRUE(Fails(forward(layer, &query, &key, &value, &output), HG_INVALID_ARGUMENT, {"layer", "accepted"}));
  }
  const hg_tensor none = {nullptr, 0, 0};
  EXPECT_TRUE(Fails(forward(0, nullptr, &key, &value, &output), HG_INVALID_ARGUMENT, {"query", "null"}));
  EXPECT_TRUE(Fails(forward(0, &none, &key, &value, &output), HG_INVALID_ARGUMENT, {"query", "null"}));
  EXPECT_TRUE(Fails(forward(0, &query, &key, &value, nullptr), HG_INVALID_ARGUMENT, {"output", "null"}));
  EXPECT_TRUE(Fails(forward(0, &query, &key, &value, &none), HG_INVALID_ARGUMENT, {"output", "null"}));
  EXPECT_TRUE(Fails(forward(0, &query, &key, nullptr, &output), HG_INVALID_ARGUMENT, {"key", "value", "null"}));
  EXPECT_TRUE(Fails(forward(0, &query, &none, &value, &output), HG_INVALID_ARGUMENT, {"key", "value", "null"}));
}

// Kinds without a stream take a step up at once, and have no graphs.
TEST_P(StepTest, Graphs) {
  const Library& library = TheLibrary();
  hg_backend* const backend = client_.backend();
  ASSERT_TRUE(Succeeds(client_.Plan(Step())));
  EXPECT_TRUE(Fails(library.backend_begin_step(nullptr, client_.plan(), nullptr, nullptr), HG_INVALID_ARGUMENT,
                    {"backend", "null"}));
  EXPECT_TRUE(
      Fails(library.backend_begin_step(backend, nullptr, nullptr, nullptr), HG_INVALID_ARGUMENT, {"plan", "null"}));
  EXPECT_TRUE(Succeeds(library.backend_begin_step(backend, client_.plan(), nullptr, nullptr)));
  const hg_graph none = {};
  EXPECT_TRUE(Fails(library.backend_begin_step(backend, client_.plan(), &none, nullptr), HG_INVALID_ARGUMENT,
                    {"graph.struct_size", "accepted"}));
  const hg_graph graph = {sizeof(graph), 4, 1};
  EXPECT_TRUE(Fails(library.backend_begin_step(backend, client_.plan(), &graph, nullptr), HG_UNIMPLEMENTED,
                    {"accepted: device kind cuda"}));
  EXPECT_TRUE(Fails(library.backend_check_replay(backend, client_.plan(), &graph), HG_UNIMPLEMENTED,
                    {"accepted: device kind cuda"}));
  EXPECT_TRUE(Fails(library.backend_check_replay(backend, nullptr, &graph), HG_INVALID_ARGUMENT, {"plan", "null"}));
  EXPECT_TRUE(
      Fails(library.backend_check_replay(backend, client_.plan(), nullptr), HG_INVALID_ARGUMENT, {"graph", "null"}));
  hg_plan* plan = nullptr;
  EXPECT_TRUE(Fails(library.backend_plan_capture(backend, &graph, nullptr, &plan), HG_UNIMPLEMENTED,
                    {"accepted: device kind cuda"}));
  EXPECT_EQ(plan, nullptr);
  EXPECT_TRUE(
      Fails(library.backend_plan_capture(backend, &graph, nullptr, nullptr), HG_INVALID_ARGUMENT, {"plan", "null"}));
  EXPECT_TRUE(client_.Works());
}

TEST_P(StepTest, PlanOfAnotherBackend) {
  Client other(GetParam().binding, GetParam().device_kind);
  ASSERT_TRUE(Succeeds(other.Plan(Step())));
  const hg_tensor query = client_.Query(), key = client_.Key(), value = client_.Value(), output = client_.Output();
  EXPECT_TRUE(Fails(TheLibrary().backend_forward(client_.backend(), other.plan(), 0, &query, &key, &value, &output),
                    HG_INVALID_ARGUMENT, {"plan", "another backend"}));
  EXPECT_TRUE(other.Works());
}

// A logit of +inf is an error, never an empty set and never a NaN that travels on.
TEST_P(StepTest, InfiniteLogit) {
  ASSERT_TRUE(Succeeds(client_.Plan(Step())));
  const hg_tensor query = client_.Query();
  for (int dim = 0; dim < Client::kHeadSize; ++dim) static_cast<float*>(query.data)[dim] = 3e38f;
  const hg_tensor key = client_.Key();
  std::vector<float> saved(static_cast<float*>(key.data), static_cast<float*>(key.data) + Client::kHeadSize);
  for (int dim = 0; dim < Client::kHeadSize; ++dim) static_cast<float*>(key.data)[dim] = 3e38f;
  EXPECT_TRUE(Fails(client_.Forward(), HG_INVALID_ARGUMENT, {"inf"}));
  for (int dim = 0; dim < Client::kHeadSize; ++dim) {
    static_cast<float*>(query.data)[dim] = 0.5f;
    static_cast<float*>(key.data)[dim] = saved[dim];
  }
}

TEST_P(StepTest, Requests) {
  const Library& library = TheLibrary();
  const int32_t blocks[] = {1, 2};
  hg_request_delta valid = {};
  valid.struct_size = sizeof(valid);
  valid.event = HG_REQUEST_SET;
  valid.request = 5;
  valid.blocks = blocks;
  valid.num_blocks = 2;
  const auto update = [&](const hg_request_delta& delta) {
    return library.backend_update_requests(client_.backend(), &delta, 1);
  };
  EXPECT_TRUE(Fails(library.backend_update_requests(nullptr, &valid, 1), HG_INVALID_ARGUMENT, {"backend", "null"}));
  if (GetParam().binding == HG_BINDING_IDENTITY) {
    EXPECT_TRUE(Fails(update(valid), HG_FAILED_PRECONDITION, {"tiered"}));
    return;
  }
  EXPECT_TRUE(
      Fails(library.backend_update_requests(client_.backend(), nullptr, 1), HG_INVALID_ARGUMENT, {"deltas", "null"}));
  EXPECT_TRUE(Fails(library.backend_update_requests(client_.backend(), &valid, -1), HG_INVALID_ARGUMENT,
                    {"count", "accepted"}));
  EXPECT_TRUE(Succeeds(library.backend_update_requests(client_.backend(), nullptr, 0)));
  hg_request_delta delta = valid;
  delta.struct_size = 0;
  EXPECT_TRUE(Fails(update(delta), HG_INVALID_ARGUMENT, {"struct_size", "accepted"}));
  for (int32_t event : {-1, 4, kMax}) {
    delta = valid;
    delta.event = event;
    EXPECT_TRUE(Fails(update(delta), HG_INVALID_ARGUMENT, {"event", "accepted"}));
  }
  delta = valid;
  delta.blocks = nullptr;
  EXPECT_TRUE(Fails(update(delta), HG_INVALID_ARGUMENT, {"blocks", "null"}));
  delta = valid;
  delta.num_blocks = -1;
  EXPECT_TRUE(Fails(update(delta), HG_INVALID_ARGUMENT, {"num_blocks", "accepted"}));
  for (int32_t block : {-1, Client::kBlocks, kMax}) {
    const int32_t bad[] = {1, block};
    delta = valid;
    delta.blocks = bad;
    EXPECT_TRUE(Fails(update(delta), HG_INVALID_ARGUMENT, {"block", "accepted: 0 to 7"}));
  }
  delta = valid;
  delta.event = HG_REQUEST_APPEND;
  delta.request = 99;
  EXPECT_TRUE(Fails(update(delta), HG_INVALID_ARGUMENT, {"request 99"}));
  Step step;
  step.requests = {99};
  ExpectPlanRefused(step, {"request 99"});
  EXPECT_TRUE(Succeeds(update(valid)));
  step.requests = {5};
  EXPECT_TRUE(Succeeds(client_.Plan(step)));
  EXPECT_TRUE(Succeeds(client_.Forward()));
  delta = valid;
  delta.event = HG_REQUEST_FINISH;
  delta.num_blocks = 0;
  EXPECT_TRUE(Succeeds(update(delta)));
  EXPECT_TRUE(Succeeds(update(delta)));  // the end of an unknown request is fine
  ExpectPlanRefused(step, {"request 5"});
}

TEST_P(StepTest, Slots) {
  if (GetParam().binding == HG_BINDING_TIERED) return;  // slots follow from tables there
  Step step;
  step.slots.assign(20, 0);
  for (int i = 0; i < 20; ++i) step.slots[i] = 16 + i;
  EXPECT_TRUE(Succeeds(client_.Plan(step)));
  EXPECT_TRUE(Succeeds(client_.Forward()));
  step.slots[3] = Client::kBlocks * Client::kBlockSize;  // one past the tensor
  const hg_status planned = client_.Plan(step);
  EXPECT_TRUE(Fails(planned == HG_OK ? client_.Forward() : planned, HG_INVALID_ARGUMENT, {"accepted"}));
  step.slots[3] = std::numeric_limits<int64_t>::max();
  const hg_status planned_again = client_.Plan(step);
  EXPECT_TRUE(Fails(planned_again == HG_OK ? client_.Forward() : planned_again, HG_INVALID_ARGUMENT, {"accepted"}));
  step.slots.assign(20, -1);  // padding: nothing is written
  EXPECT_TRUE(Succeeds(client_.Plan(step)));
  step.slots.resize(7);  // fewer slots than tokens
  EXPECT_TRUE(Fails(client_.Plan(step), HG_INVALID_ARGUMENT, {"slot", "accepted"}));
}

TEST_P(StepTest, Statistics) {
  const Library& library = TheLibrary();
  size_t needed = 0;
  EXPECT_TRUE(
      Fails(library.backend_stats_json(nullptr, nullptr, 0, &needed), HG_INVALID_ARGUMENT, {"backend", "null"}));
  EXPECT_TRUE(Fails(library.backend_stats_json(client_.backend(), nullptr, 0, nullptr), HG_INVALID_ARGUMENT,
                    {"needed", "null"}));
  EXPECT_TRUE(Fails(library.backend_stats_json(client_.backend(), nullptr, 10, &needed), HG_INVALID_ARGUMENT,
                    {"buffer", "null"}));
  ASSERT_TRUE(Succeeds(library.backend_stats_json(client_.backend(), nullptr, 0, &needed)));
  ASSERT_GT(needed, 2u);
  std::string small(8, 'x');
  EXPECT_TRUE(Succeeds(library.backend_stats_json(client_.backend(), small.data(), 4, &needed)));
  EXPECT_EQ(small.substr(4), "xxxx");  // at most `capacity` bytes are written
  EXPECT_EQ(small[3], '\0');
}

TEST_P(StepTest, StreamingShare) {
  const Library& library = TheLibrary();
  for (double share : {-0.01, 1.01, std::nan(""), HUGE_VAL}) {
    EXPECT_TRUE(Fails(library.backend_set_streaming_share(client_.backend(), share), HG_INVALID_ARGUMENT,
                      {"share", "accepted: 0 to 1"}));
  }
  EXPECT_TRUE(Fails(library.backend_set_streaming_share(nullptr, 0.5), HG_INVALID_ARGUMENT, {"backend", "null"}));
}

INSTANTIATE_TEST_SUITE_P(Setups, StepTest,
                         ::testing::Values(Setup{HG_BINDING_IDENTITY, HG_DEVICE_CPU},
                                           Setup{HG_BINDING_TIERED, HG_DEVICE_CPU},
                                           Setup{HG_BINDING_IDENTITY, HG_DEVICE_EMULATED},
                                           Setup{HG_BINDING_TIERED, HG_DEVICE_EMULATED}),
                         [](const ::testing::TestParamInfo<Setup>& info) { return Name(info.param); });

}  // namespace
}  // namespace hybridgen
