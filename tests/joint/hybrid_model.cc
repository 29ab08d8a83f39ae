#include "tests/joint/hybrid_model.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {  // splitmix64's finaliser
  uint64_t z = a * 0x9e3779b97f4a7c15 + b + 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// What the arithmetic of the model is made of; shared with the oracle, which differs in how words travel.
uint64_t QueryWord(uint64_t state, int layer) { return Mix(state, 1000 + layer); }
// `secret` is known to the host alone.
uint64_t PartialWord(const uint64_t* query, int words, int i, uint64_t secret) {
  return Mix(query[i] + 3 * query[(i + 1) % words], secret);
}
uint64_t Secret(uint64_t seed, int step, int layer) { return Mix(Mix(seed, step), layer); }
uint64_t MergedWord(uint64_t state, uint64_t partial) { return Mix(state, partial); }
uint64_t Token(const std::vector<uint64_t>& state) {
  return std::accumulate(state.begin(), state.end(), uint64_t{0}, Mix);
}

// A step as a sequence of publications and merges (each merge with its wait).
struct Op {
  enum Kind : uint8_t { kPublish, kMerge } kind;
  int layer;
};

std::vector<Op> Program(const HybridCase& c) {
  std::vector<Op> ops;
  const int ahead = c.order == HybridCase::Order::kTwoOpen ? 1 : 0;
  int published = 0;
  for (int layer = 0; layer < c.layers; ++layer) {
    for (; published <= std::min(layer + ahead, c.layers - 1); ++published) ops.push_back({Op::kPublish, published});
    ops.push_back({Op::kMerge, layer});
  }
  return ops;
}

uint64_t SteadyNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

std::string HybridCase::ToString() const {
  return absl::StrCat("seed ", seed, ": ", layers, " layers, ", words, " words, ", threads, " threads, launch ",
                      static_cast<int>(launch), ", order ", static_cast<int>(order), ", non-temporal ", non_temporal,
                      ", executor ", executor, ", steps with a CPU part [",
                      absl::StrJoin(steps, " ", [](std::string* out, bool on) { absl::StrAppend(out, on ? 1 : 0); }),
                      "]");
}

HybridCase RandomCase(uint64_t seed) {
  std::mt19937_64 rng(seed);
  HybridCase c;
  c.seed = seed;
  c.layers = 1 + rng() % 4;
  c.words = 1 + rng() % 24;
  c.threads = 1 + rng() % 6;
  c.launch = static_cast<HybridCase::Launch>(rng() % 3);
  c.order = static_cast<HybridCase::Order>(rng() % 2);
  c.non_temporal = rng() % 2 == 0;
  c.executor = !c.non_temporal && rng() % 2 == 0;
  c.steps.resize(1 + rng() % 6);
  for (size_t i = 0; i < c.steps.size(); ++i) c.steps[i] = rng() % 8 != 0;
  return c;
}

std::vector<uint64_t> OracleTokens(const HybridCase& c) {
  std::vector<uint64_t> state(c.words), tokens;
  std::iota(state.begin(), state.end(), c.seed);
  for (size_t step = 0; step < c.steps.size(); ++step) {
    std::vector<std::vector<uint64_t>> queries(c.layers, std::vector<uint64_t>(c.words));
    for (const Op& op : Program(c)) {
      std::vector<uint64_t>& query = queries[op.layer];
      for (int i = 0; i < c.words; ++i) {
        if (op.kind == Op::kPublish) {
          query[i] = QueryWord(state[i], op.layer);
        } else if (c.steps[step]) {
          const uint64_t secret = Secret(c.seed, static_cast<int>(step), op.layer);
          state[i] = MergedWord(state[i], PartialWord(query.data(), c.words, i, secret));
        }
      }
    }
    tokens.push_back(Token(state));
  }
  return tokens;
}

struct HybridRun::Shared {
  Shared(const HybridCase& hybrid_case, HybridOptions hybrid_options)
      : c(hybrid_case),
        options(std::move(hybrid_options)),
        device(c.seed, c.threads, options.mutation,
               options.device_now_ns != nullptr ? options.device_now_ns : SteadyNanoseconds),
        stream_rng(c.seed + 1),
        worker_rng(c.seed + 2),
        launch_rng(c.seed + 3),
        non_temporal(c.seed + 4),
        state(c.words),
        query(c.words) {
    std::iota(state.begin(), state.end(), c.seed);
  }

  const HybridCase c;
  const HybridOptions options;
  WeakDevice device;
  std::mt19937_64 stream_rng, worker_rng, launch_rng;  // each of one thread

  // Of the dispatcher's thread.
  StoreBuffer non_temporal;
  int step_at_work = 0, layer_at_work = 0;

  // Device memory: of the stream's thread, and of the test's when the stream is idle.
  JointPlan plan = {};
  JointTable table = {};
  std::vector<uint64_t> state, query, tokens;
  JointOutcome last_outcome = JointOutcome::kAnswered;

  JointPlan single_plan_source = {};  // of Mutation::kOnePlanSource

  void At(Place place) {
    if (options.at != nullptr) options.at(step_at_work, layer_at_work, place);
  }

  absl::Status Work(int step, const JointCall& call) {
    step_at_work = step;
    layer_at_work = call.index;
    At(Place::kBeforeWork);
    RandomDelay(worker_rng);
    const auto* query_words = static_cast<const uint64_t*>(call.query);
    auto* partial = reinterpret_cast<uint64_t*>(call.o);
    const uint64_t secret = Secret(c.seed, step, call.index);
    const auto compute = [&](int i) { return PartialWord(query_words, c.words, i, secret); };
    if (c.executor) {
      absl::Status done =
          ParallelFor(*options.executor, c.words, [&](int, int64_t i) { partial[i] = compute(static_cast<int>(i)); });
      if (!done.ok()) return done;
    }
    for (int i = 0; i < c.words; ++i) {
      if (i == c.words / 2) At(Place::kMidData);
      if (c.non_temporal) {
        non_temporal.Store(partial + i, compute(i));
      } else if (!c.executor) {
        partial[i] = compute(i);
      }
    }
    RandomDelay(worker_rng);
    return absl::OkStatus();
  }

  // Called by the dispatcher between the work and its answer.
  void PublishStores() {
    At(Place::kBeforeFence);
    if (options.mutation != Mutation::kNoWorkerFence) non_temporal.Drain();
    At(Place::kBeforeAnswer);
  }

  KernelEnd Publish(int layer) {
    for (int i = 0; i < c.words; ++i) query[i] = QueryWord(state[i], layer);
    std::vector<int> threads(c.threads);
    std::iota(threads.begin(), threads.end(), 0);
    std::shuffle(threads.begin(), threads.end(), stream_rng);
    for (int thread : threads) {
      WeakOps ops(device, thread);
      JointStoreQuery(ops, table, layer, query.data(), c.words, thread, c.threads);
    }
    RandomDelay(stream_rng);
    WeakOps ops(device, 0);
    JointPublish(ops, table, layer);
    return KernelEnd::kDone;
  }

  KernelEnd Wait(int layer) {
    WeakOps ops(device, 0);
    last_outcome = JointWait(ops, table, layer);
    if (options.mutation == Mutation::kNoTrap) return KernelEnd::kDone;
    return last_outcome == JointOutcome::kAnswered ? KernelEnd::kDone : KernelEnd::kTrap;
  }

  KernelEnd Merge(int layer) {
    if (plan.first_sequence == kJointIdle) return KernelEnd::kDone;
    const auto* partial =
        reinterpret_cast<const uint64_t*>(JointSlot(table, plan.first_sequence + layer) + table.o_offset);
    for (int i = 0; i < c.words; ++i) state[i] = MergedWord(state[i], device.Load(partial + i));
    return KernelEnd::kDone;
  }

  // The kernels of one step. All that they capture is constant, as in a captured graph.
  std::vector<std::vector<Kernel>> Kernels() {
    std::vector<std::vector<Kernel>> kernels;
    for (const Op& op : Program(c)) {
      const int layer = op.layer;
      if (op.kind == Op::kPublish) {
        kernels.push_back({[this, layer] { return Publish(layer); }});
      } else {
        kernels.push_back({[this, layer] { return Wait(layer); }, [this, layer] { return Merge(layer); }});
      }
    }
    kernels.push_back({[this] {
      tokens.push_back(Token(state));
      return KernelEnd::kDone;
    }});
    return kernels;
  }
};

HybridRun::HybridRun(const HybridCase& c, HybridOptions options)
    : shared_(std::make_shared<Shared>(c, std::move(options))) {
  JointOptions joint;
  joint.bytes = {8 * c.words, 8 * c.words, 4};
  joint.worker_timeout = shared_->options.worker_timeout;
  joint.device_timeout = shared_->options.device_timeout;
  joint.now_ns = shared_->options.host_now_ns;
  joint.publish_stores = [shared = shared_] { shared->PublishStores(); };
  absl::StatusOr<std::unique_ptr<JointDispatcher>> created = JointDispatcher::Create(std::move(joint));
  EXPECT_TRUE(created.ok()) << created.status();
  joint_ = *std::move(created);
  shared_->table = joint_->memory().table();
  shared_->table.plan = &shared_->plan;
  stream_ = std::make_unique<FakeStream>(c.seed);
}

HybridRun::~HybridRun() = default;

void HybridRun::LaunchAll() {
  Shared& s = *shared_;
  const std::vector<std::vector<Kernel>> captured = s.Kernels();
  bool plan_copied = false;
  uint64_t last_sequence = 0;
  for (size_t step = 0; step < s.c.steps.size(); ++step) {
    const JointPlan* source = &joint_->memory().idle_plan();
    while (s.c.steps[step]) {
      absl::StatusOr<const JointPlan*> begun = joint_->BeginStep(
          s.c.layers,
          [shared = shared_, step](const JointCall& call) { return shared->Work(static_cast<int>(step), call); });
      if (begun.ok()) {
        source = *begun;
        if (joint_->memory().Answered() < last_sequence) ++overlaps_;
        last_sequence = source->first_sequence + s.c.layers - 1;
        break;
      }
      // Two steps are in flight. With the stream idle their calls must have been answered.
      const bool idle = stream_->Idle();
      if (idle && joint_->memory().Answered() < last_sequence) return;
      if (!joint_->status().ok() || !stream_->Launch({})) return;
      std::this_thread::yield();
    }
    if (s.options.mutation == Mutation::kOnePlanSource) {
      s.single_plan_source = *source;
      source = &s.single_plan_source;
    }
    if (!plan_copied || s.options.mutation != Mutation::kFrozenPlan) {
      stream_->Launch({[&s, source] {
        s.plan = *source;
        return KernelEnd::kDone;
      }});
    }
    plan_copied = true;
    const auto& kernels = s.c.launch == HybridCase::Launch::kEager ? s.Kernels() : captured;
    std::vector<Kernel> whole;
    for (const std::vector<Kernel>& piece : kernels) {
      if (s.c.launch == HybridCase::Launch::kGraph) {
        whole.insert(whole.end(), piece.begin(), piece.end());
      } else {
        stream_->Launch(piece);
        RandomDelay(s.launch_rng);
      }
    }
    stream_->Launch(std::move(whole));
    RandomDelay(s.launch_rng);
  }
}

bool HybridRun::Synchronize() { return stream_->Synchronize(); }
const std::vector<uint64_t>& HybridRun::tokens() const { return shared_->tokens; }
JointOutcome HybridRun::last_outcome() const { return shared_->last_outcome; }
absl::Status HybridRun::status() const { return joint_->status(); }
const JointMemory& HybridRun::memory() const { return joint_->memory(); }

}  // namespace hybridgen
