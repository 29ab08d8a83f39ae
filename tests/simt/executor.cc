// Scheduling of fibres, barriers and collectives.
#include "tests/simt/executor.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/simt/fiber.h"
#include "tests/simt/shared_memory.h"

namespace hybridgen::simt {
namespace {

constexpr int kWarp = 32;
constexpr int kBarriers = 16;

struct Block;

// A cp.async that has not been waited for.
struct Copy {
  void* shared;
  const void* source;
  int source_bytes;
  int line;
  int group;  // number of commits before it
  bool landed;
};

struct LateStore {
  void* to;
  char bytes[16];
};

struct Lane {
  Fiber fiber;
  Block* block = nullptr;
  int thread = 0;
  bool done = false;
  std::string waits_at;  // what it waits for; empty: it can run
  std::deque<Copy> copies;
  int commits = 0;
  std::vector<LateStore> stores;
};

// A barrier or collective that some of its threads have reached.
struct Meeting {
  const char* operation = nullptr;
  int expected = 0;
  uint32_t mask = 0;
  Site site{};
  std::vector<Lane*> lanes;
  std::vector<void*> payloads;  // collectives: by lane

  bool open() const { return !lanes.empty(); }
};

struct Block {
  Block(Dim3 index, size_t shared_bytes, int threads) : index(index), shared(shared_bytes, threads), lanes(threads) {}
  Dim3 index;
  SharedMemory shared;
  std::vector<Lane> lanes;
  Meeting barriers[kBarriers];
  std::map<int, std::vector<Meeting>> collectives;  // by warp: those under way, with disjoint masks
  int running = 0;
};

std::string At(const char* operation, Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return absl::StrCat(operation, " (", slash == nullptr ? site.file : slash + 1, ":", site.line, ")");
}

thread_local StackPool stacks;  // outlives a launch: mapping a block's stacks takes longer than many kernels

class Machine {
 public:
  Machine(const LaunchConfig& config, const std::function<void()>& kernel)
      : config_(config), kernel_(kernel), random_(config.seed) {}

  absl::Status Run();

  Lane& current() { return *current_; }
  std::mt19937_64& random() { return random_; }
  const LaunchConfig& config() const { return config_; }
  uint64_t clock = 0;

  void MakeReady(Lane* lane) {
    lane->waits_at.clear();
    ready_.push_back(lane);
  }
  // On a lane: gives way to another one.
  void Leave() { current_->fiber.Leave(Fiber::Last::kNo); }
  // An error on a lane: Report, and then Abandon in a statement of its own. Frames are not unwound, so whatever an
  // expression holds when its fibre is left for good would be lost.
  void Report(const std::string& message) {
    const Dim3 at = current_->block->index;
    error_ = absl::StrCat("block (", at.x, ", ", at.y, ", ", at.z, "): ", message);
    failed_ = true;
  }
  [[noreturn]] void Abandon() {
    current_->fiber.Leave(Fiber::Last::kYes);
    __builtin_unreachable();
  }
  void LandSome() {
    std::deque<Copy>& copies = current_->copies;
    if (!copies.empty() && random_() % 4 == 0) Land(copies[random_() % copies.size()]);
    if (!current_->stores.empty() && random_() % 4 == 0) Show(*current_);
  }
  static void Show(Lane& lane) {
    for (const LateStore& store : lane.stores) std::memcpy(store.to, store.bytes, sizeof(store.bytes));
    lane.stores.clear();
  }
  static void Land(Copy& copy) {
    if (copy.landed) return;
    copy.landed = true;
    if (copy.source_bytes > 0) std::memcpy(copy.shared, copy.source, copy.source_bytes);
    std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0, 16 - copy.source_bytes);
  }

 private:
  static void RunLane(void* lane);
  void StartBlock(int number);
  void FinishBlock(Block* block);
  std::string Stuck() const;

  const LaunchConfig& config_;
  const std::function<void()>& kernel_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Block>> blocks_;  // resident
  std::vector<Lane*> ready_;
  Lane* current_ = nullptr;
  bool failed_ = false;
  std::string error_;
};

thread_local Machine* machine = nullptr;

void Machine::RunLane(void* lane) {
  Machine& self = *machine;
  self.kernel_();
  Lane& me = *static_cast<Lane*>(lane);
  if (!me.copies.empty()) {
    self.Report(absl::StrCat("thread ", me.thread, " ends with a cp.async that it has not waited for (line ",
                             me.copies[0].line, ")"));
    self.Abandon();
  }
  Show(me);
  me.done = true;
  --me.block->running;
  me.fiber.Leave(Fiber::Last::kYes);
}

void Machine::StartBlock(int number) {
  const Dim3& g = config_.grid;
  const Dim3 index = {number % g.x, number / g.x % g.y, number / g.x / g.y};
  blocks_.push_back(std::make_unique<Block>(index, config_.shared_bytes, config_.threads));
  Block* block = blocks_.back().get();
  block->running = config_.threads;
  for (int thread = 0; thread < config_.threads; ++thread) {
    Lane& lane = block->lanes[thread];
    lane.block = block;
    lane.thread = thread;
    lane.fiber.Start(stacks.Take(), &Machine::RunLane, &lane);
    ready_.push_back(&lane);
  }
}

void Machine::FinishBlock(Block* block) {
  for (Lane& lane : block->lanes) stacks.Give(lane.fiber.TakeStack());
  if (!block->shared.RedZonesIntact()) {
    failed_ = true;
    error_ = "a plain pointer wrote beside the shared memory";
  }
  blocks_.erase(std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& b) { return b.get() == block; }));
}

// What every unfinished thread waits for, equal ones together.
std::string Machine::Stuck() const {
  std::string text;
  for (const auto& block : blocks_) {
    std::map<std::string, std::string> waits;
    for (const Lane& lane : block->lanes) {
      const std::string what = lane.done ? "have ended" : lane.waits_at.empty() ? "run" : "wait at " + lane.waits_at;
      absl::StrAppend(&waits[what], " ", lane.thread);
    }
    absl::StrAppend(&text, "block (", block->index.x, ", ", block->index.y, ", ", block->index.z, "):");
    for (const auto& [what, threads] : waits) absl::StrAppend(&text, " threads", threads, " ", what, ";");
  }
  return text;
}

absl::Status Machine::Run() {
  std::vector<int> order(config_.grid.x * config_.grid.y * config_.grid.z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  size_t started = 0;
  for (int64_t switches = 0; !failed_; ++switches) {
    while (started < order.size() && static_cast<int>(blocks_.size()) < config_.resident_blocks) {
      StartBlock(order[started++]);
    }
    if (blocks_.empty()) break;
    if (ready_.empty()) {
      failed_ = true;
      error_ = "deadlock: " + Stuck();
      break;
    }
    if (switches >= config_.max_switches) {
      failed_ = true;
      error_ = absl::StrCat("no end after ", switches, " switches: ", Stuck());
      break;
    }
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    ++clock;
    current_->fiber.Enter();
    if (!failed_ && current_->block->running == 0) FinishBlock(current_->block);
  }
  if (!failed_) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(error_, "; seed ", config_.seed));
}

// One more lane comes to a meeting. Returns whether it is now complete.
bool Arrive(Machine& m, Meeting& meeting, const char* operation, int expected, uint32_t mask, Site site) {
  Lane& me = m.current();
  if (!meeting.open()) {
    meeting = {operation, expected, mask, site, {}, std::vector<void*>(kWarp, nullptr)};
  } else if (meeting.operation != operation || meeting.expected != expected || meeting.mask != mask ||
             meeting.site.line != site.line || std::strcmp(meeting.site.file, site.file) != 0) {
    m.Report(absl::StrCat("divergence: thread ", me.thread, " comes to ", At(operation, site), " for ", expected,
                          " threads, mask ", absl::Hex(mask), ", while thread ", meeting.lanes[0]->thread, " waits at ",
                          At(meeting.operation, meeting.site), " for ", meeting.expected, ", mask ",
                          absl::Hex(meeting.mask)));
    m.Abandon();
  }
  meeting.lanes.push_back(&me);
  return static_cast<int>(meeting.lanes.size()) == expected;
}

void Wait(Machine& m, const char* operation, Site site) {
  m.current().waits_at = At(operation, site);
  m.Leave();
}

// The last lane lets the others go and gives way itself, so that no lane is favoured.
void Release(Machine& m, Meeting& meeting, Orders orders) {
  if (orders == Orders::kMemory) {
    std::vector<int> threads;
    for (Lane* lane : meeting.lanes) threads.push_back(lane->thread);
    m.current().block->shared.Synchronise(threads);
  }
  for (Lane* lane : meeting.lanes) m.MakeReady(lane);
  meeting.lanes.clear();
}

// Reports an access that is wrong; the message is gone when it returns. Whether it was fine.
bool Accept(Machine& m, const std::string& error) {
  if (error.empty()) return true;
  m.Report(error);
  return false;
}

}  // namespace

absl::Status Launch(const LaunchConfig& config, const std::function<void()>& kernel) {
  if (config.threads <= 0 || config.threads > 1024 || config.threads % kWarp != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("launch with ", config.threads, " threads; a block has a multiple of 32 up to 1024"));
  }
  if (machine != nullptr) return absl::FailedPreconditionError("a launch inside a kernel is not supported");
  Machine run(config, kernel);
  machine = &run;
  const absl::Status status = run.Run();
  machine = nullptr;
  return status;
}

int ThreadIndex() { return machine->current().thread; }
Dim3 BlockIndex() { return machine->current().block->index; }
char* SharedBase() { return machine->current().block->shared.base(); }
uint64_t Now() { return machine->clock; }

void Barrier(int id, int threads, Site site) {
  Machine& m = *machine;
  if (threads == 0) threads = m.config().threads;
  if (id < 0 || id >= kBarriers || threads % kWarp != 0 || threads > m.config().threads) {
    m.Report(absl::StrCat(At("barrier", site), ": id ", id, " of ", kBarriers, ", ", threads, " threads of ",
                          m.config().threads));
    m.Abandon();
  }
  m.LandSome();
  Meeting& meeting = m.current().block->barriers[id];
  if (Arrive(m, meeting, "barrier", threads, 0, site)) {
    Release(m, meeting, Orders::kMemory);
    m.Leave();
  } else {
    Wait(m, "barrier", site);
  }
}

void Collective(const char* operation, uint32_t mask, void* payload, Combine combine, Orders orders, Site site) {
  Machine& m = *machine;
  Lane& me = m.current();
  const int lane = me.thread % kWarp;
  if ((mask >> lane & 1) == 0) {
    m.Report(absl::StrCat("thread ", me.thread, " is not in the mask ", absl::Hex(mask), " of ", At(operation, site)));
    m.Abandon();
  }
  m.LandSome();
  std::vector<Meeting>& under_way = me.block->collectives[me.thread / kWarp];
  const auto at = std::find_if(under_way.begin(), under_way.end(),
                               [&](const Meeting& meeting) { return (meeting.mask & mask) != 0; });
  const size_t index = at - under_way.begin();
  if (at == under_way.end()) under_way.emplace_back();
  const bool complete = Arrive(m, under_way[index], operation, __builtin_popcount(mask), mask, site);
  under_way[index].payloads[lane] = payload;
  if (!complete) return Wait(m, operation, site);
  Meeting meeting = std::move(under_way[index]);
  under_way.erase(under_way.begin() + index);
  if (combine != nullptr) combine(meeting.payloads.data(), mask);
  Release(m, meeting, orders);
  meeting = {};  // a fibre that leaves owns nothing
  m.Leave();
}

void CheckShared(SharedAccess access, const void* address, size_t size, Site site) {
  Machine& m = *machine;
  if (m.random()() % 32 == 0) Yield();
  Lane& me = m.current();
  const auto kind = access == SharedAccess::kRead ? SharedMemory::Access::kRead : SharedMemory::Access::kWrite;
  const bool fine = Accept(m, me.block->shared.Check(kind, me.thread, address, size, site.line));
  if (!fine) m.Abandon();
}

void AsyncCopy(void* shared, const void* source, int source_bytes, Site site) {
  Machine& m = *machine;
  Lane& me = m.current();
  const bool fine = Accept(m, me.block->shared.BeginCopy(me.thread, shared, 16, site.line));
  if (!fine) m.Abandon();
  me.copies.push_back({shared, source, source_bytes, site.line, me.commits, false});
  m.LandSome();
}

void AsyncCommit() { ++machine->current().commits; }

void AsyncWait(int groups_in_flight) {
  Lane& me = machine->current();
  while (!me.copies.empty() && me.copies.front().group < me.commits - groups_in_flight) {
    Machine::Land(me.copies.front());
    me.block->shared.EndCopy(me.thread, me.copies.front().shared, 16, me.copies.front().line);
    me.copies.pop_front();
  }
}

void StoreLate(void* to, const void* from) {
  LateStore store;
  store.to = to;
  std::memcpy(store.bytes, from, sizeof(store.bytes));
  machine->current().stores.push_back(store);
}

void FenceSystem() { Machine::Show(machine->current()); }

void StoreRelease(uint64_t* word, uint64_t value) {
  FenceSystem();
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
  if (machine->config().released) machine->config().released(word, value);
  Yield();
}

void Yield() {
  Machine& m = *machine;
  m.LandSome();
  m.MakeReady(&m.current());
  m.Leave();
}

void Sleep(uint32_t nanoseconds) {
  machine->clock += nanoseconds;
  Yield();
}

void Fail(const char* message, Site site) {
  machine->Report(absl::StrCat("thread ", machine->current().thread, ": ", At(message, site)));
  machine->Abandon();
}

}  // namespace hybridgen::simt
