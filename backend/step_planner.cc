#include "backend/step_planner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

// Checks the batch's shape and appends its sequences (without pages) to the plan.
absl::Status AddSequences(const StepBatch& batch, StepPlan& plan) {
  const size_t count = batch.seq_lens.size();
  if (batch.query_start.size() != count + 1) {
    return absl::InvalidArgumentError(absl::StrCat("plan step: query_start has ", batch.query_start.size(),
                                                   " entries; accepted: num_sequences + 1 = ", count + 1));
  }
  if (!batch.query_start.empty() && batch.query_start[0] != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan step: query_start[0] is ", batch.query_start[0], "; accepted: 0"));
  }
  for (size_t i = 0; i < count; ++i) {
    PlanSequence sequence;
    sequence.query_start = batch.query_start[i];
    const int64_t query_len = static_cast<int64_t>(batch.query_start[i + 1]) - batch.query_start[i];
    sequence.seq_len = batch.seq_lens[i];
    if (query_len < 0) {
      return absl::InvalidArgumentError(absl::StrCat("plan step: query_start falls from ", batch.query_start[i], " to ",
                                                     batch.query_start[i + 1], " at sequence ", i,
                                                     "; accepted: never falling"));
    }
    if (sequence.seq_len < 0 || query_len > sequence.seq_len) {
      return absl::InvalidArgumentError(absl::StrCat("plan step: sequence ", i, " has ", query_len,
                                                     " query tokens but seq_len ", sequence.seq_len,
                                                     "; accepted: query tokens <= seq_len"));
    }
    sequence.query_len = static_cast<int32_t>(query_len);
    plan.sequences.push_back(sequence);
  }
  plan.num_tokens = count == 0 ? 0 : batch.query_start[count];
  plan.causal = batch.causal;
  return absl::OkStatus();
}

// The first table entry of a sequence that any layer looks at.
int32_t FirstBlock(const PlanSequence& sequence, int32_t widest_window, int block_size) {
  if (widest_window <= 0) return 0;
  return std::max(0, sequence.seq_len - sequence.query_len + 1 - widest_window) / block_size;
}

int32_t BlocksOf(int32_t tokens, int block_size) {
  return static_cast<int32_t>((static_cast<int64_t>(tokens) + block_size - 1) / block_size);
}

absl::Status CheckTableLength(size_t sequence, int32_t blocks, int64_t entries) {
  if (blocks <= entries) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("plan step: sequence ", sequence, " needs ", blocks,
                                                 " block table entries for its seq_len; its table has ", entries));
}

absl::Status BadBlock(size_t sequence, int32_t entry, int64_t block, int64_t num_blocks) {
  return absl::InvalidArgumentError(absl::StrCat("plan step: block table entry ", entry, " of sequence ", sequence,
                                                 " is block id ", block, "; accepted: 0 to ", num_blocks - 1));
}

class IdentityPlanner final : public StepPlanner {
 public:
  explicit IdentityPlanner(int block_size) : block_size_(block_size) {}

  absl::Status Plan(const StepBatch& batch, const LayerLimits& limits, StepPlan& plan) override {
    plan.Clear();
    plan.step = ++step_;
    plan.window_tokens = limits.widest_window;
    if (absl::Status status = AddSequences(batch, plan); !status.ok()) return status;
    if (batch.block_tables == nullptr && !plan.sequences.empty()) {
      return absl::InvalidArgumentError(
          "plan step: block_tables is null; the identity binding plans from block tables");
    }
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      PlanSequence& sequence = plan.sequences[i];
      const int32_t blocks = BlocksOf(sequence.seq_len, block_size_);
      if (absl::Status status = CheckTableLength(i, blocks, batch.block_table_stride); !status.ok()) return status;
      const int32_t* table = batch.block_tables + static_cast<int64_t>(i) * batch.block_table_stride;
      sequence.pool_pages.begin = static_cast<int32_t>(plan.pages.size());
      for (int32_t b = FirstBlock(sequence, limits.widest_window, block_size_); b < blocks; ++b) {
        if (table[b] < 0) return BadBlock(i, b, table[b], INT32_MAX);
        plan.max_block = std::max<int64_t>(plan.max_block, table[b]);
        PlanPage page;
        page.k = page.v = static_cast<uint64_t>(table[b]);
        page.first_position = b * block_size_;
        page.num_tokens = std::min(block_size_, sequence.seq_len - b * block_size_);
        plan.pages.push_back(page);
      }
      sequence.pool_pages.end = static_cast<int32_t>(plan.pages.size());
      if (!batch.has_slot_mapping) AddWrites(sequence, table, plan);
    }
    if (batch.has_slot_mapping) {
      if (static_cast<int64_t>(batch.slot_mapping.size()) < plan.num_tokens) {
        return absl::InvalidArgumentError(absl::StrCat("plan step: slot_mapping has ", batch.slot_mapping.size(),
                                                       " slots; accepted: one for each of the ", plan.num_tokens,
                                                       " query tokens, or more"));
      }
      AddSlots(batch.slot_mapping.first(plan.num_tokens), plan);
    }
    SplitWork(limits.split, plan);
    return absl::OkStatus();
  }

 private:
  // Appends a token to the last run if it continues it.
  void AddWrite(int64_t block, int32_t offset, int32_t token, StepPlan& plan) {
    ++plan.tokens_written;
    plan.max_block = std::max(plan.max_block, block);
    if (!plan.pool_writes.empty()) {
      WriteRun& last = plan.pool_writes.back();
      if (last.k == static_cast<uint64_t>(block) && last.offset + last.num_tokens == offset &&
          last.token + last.num_tokens == token) {
        ++last.num_tokens;
        return;
      }
    }
    WriteRun run;
    run.k = run.v = static_cast<uint64_t>(block);
    run.offset = offset;
    run.token = token;
    run.num_tokens = 1;
    plan.pool_writes.push_back(run);
  }

  void AddWrites(const PlanSequence& sequence, const int32_t* table, StepPlan& plan) {
    for (int32_t t = 0; t < sequence.query_len; ++t) {
      const int32_t position = sequence.seq_len - sequence.query_len + t;
      const int32_t block = table[position / block_size_];
      if (block > 0) AddWrite(block, position % block_size_, sequence.query_start + t, plan);
    }
  }

  void AddSlots(absl::Span<const int64_t> slots, StepPlan& plan) {
    for (size_t t = 0; t < slots.size(); ++t) {
      if (slots[t] < 0) continue;  // padding
      AddWrite(slots[t] / block_size_, static_cast<int32_t>(slots[t] % block_size_), static_cast<int32_t>(t), plan);
    }
  }

  const int block_size_;
  int64_t step_ = 0;
};

// Migrations at a time: each holds the page that it moves to.
constexpr int64_t kMostMigrations = 8;

class TieredPlanner final : public StepPlanner {
 public:
  explicit TieredPlanner(const TieredPlannerOptions& options) : o_(options) {}

  absl::Status Plan(const StepBatch& batch, const LayerLimits& limits, StepPlan& plan) override {
    plan.Clear();
    plan.window_tokens = limits.widest_window;
    if (absl::Status status = AddSequences(batch, plan); !status.ok()) return status;
    if (absl::Status status = FindTables(batch, limits, plan); !status.ok()) return status;

    Retire(last_step_);
    if (absl::Status status = FinishCopies(); !status.ok()) return status;
    for (int32_t block : o_.mirror->TakeUnreferenced()) {
      if (!o_.mirror->IsReferenced(block)) o_.blocks->MarkDead(block);
    }
    if (absl::Status status = Start(o_.blocks->PlanPublish(o_.knobs->publish_blocks)); !status.ok()) return status;
    if (absl::Status status = StartMigrations(); !status.ok()) return status;

    plan.step = last_step_ = o_.blocks->BeginStep();
    // All writes before any read: a sequence may read prefix blocks that another writes in this very step.
    if (absl::Status status = AddWrites(plan); !status.ok()) return status;
    recall_candidates_.clear();
    stream_carry_ = 0;
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      if (absl::Status status = AddPages(plan.sequences[i], i, limits, plan); !status.ok()) return status;
    }
    if (o_.device != nullptr && !recall_candidates_.empty()) {
      std::reverse(recall_candidates_.begin(), recall_candidates_.end());  // newest blocks are wanted most
      const auto tasks = o_.blocks->PlanRecall(recall_candidates_, o_.knobs->recall_blocks);
      if (absl::Status status = Start(tasks); !status.ok()) return status;
    }
    SplitWork(limits.split, plan);
    return absl::OkStatus();
  }

 private:
  // Checks every table entry that the step looks at, before any block changes.
  absl::Status FindTables(const StepBatch& batch, const LayerLimits& limits, StepPlan& plan) {
    tables_.clear();
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      absl::Span<const int32_t> table;
      if (!batch.requests.empty()) {
        absl::StatusOr<absl::Span<const int32_t>> found = o_.mirror->Table(batch.requests[i]);
        if (!found.ok()) return found.status();
        table = *found;
      } else if (batch.block_tables != nullptr) {
        table = {batch.block_tables + static_cast<int64_t>(i) * batch.block_table_stride,
                 static_cast<size_t>(batch.block_table_stride)};
      } else {
        return absl::InvalidArgumentError("plan step: block_tables and requests are both null; pass one of them");
      }
      const int32_t blocks = BlocksOf(plan.sequences[i].seq_len, o_.block_size);
      if (absl::Status status = CheckTableLength(i, blocks, table.size()); !status.ok()) return status;
      tables_.push_back(table.first(blocks));
      for (int32_t b = FirstBlock(plan.sequences[i], limits.widest_window, o_.block_size); b < blocks; ++b) {
        if (table[b] < 0 || table[b] >= o_.num_blocks) return BadBlock(i, b, table[b], o_.num_blocks);
        plan.max_block = std::max<int64_t>(plan.max_block, table[b]);
      }
    }
    return absl::OkStatus();
  }

  // Pages of steps up to `newest` with which every processor is done may be recycled. The CPU alone is done with all.
  void Retire(int64_t newest) {
    o_.blocks->RetireThrough(o_.device == nullptr ? newest : o_.device->CompletedStep(newest));
  }

  absl::Status FinishCopies() {
    if (absl::Status status = Finish(o_.copies->TakeFinished()); !status.ok()) return status;
    return o_.mover == nullptr ? absl::OkStatus() : Finish(o_.mover->TakeFinished());
  }

  // All copies end here, whoever made them. Digests are built at once, while the new host pages are their block's and
  // no write to them is planned.
  absl::Status Finish(const std::vector<CopyTask>& tasks) {
    published_.clear();
    for (const CopyTask& task : tasks) {
      if (absl::Status status = o_.blocks->FinishCopy(task); !status.ok()) return status;
      const bool applied =
          task.outcome == CopyOutcome::kComplete && o_.blocks->generation(task.block) == task.generation;
      if (applied && task.kind == CopyTask::Kind::kPublish) published_.push_back(task);
    }
    return o_.digests == nullptr ? absl::OkStatus() : o_.digests->Build(published_, o_.executor);
  }

  absl::Status Start(std::vector<CopyTask> tasks) {
    if (tasks.empty()) return absl::OkStatus();
    if (absl::Status status = o_.copies->Start(std::move(tasks)); !status.ok()) return status;
    return FinishCopies();
  }

  absl::Status StartMigrations() {
    if (o_.mover == nullptr) return absl::OkStatus();
    std::vector<CopyTask> tasks =
        o_.blocks->PlanHeal(static_cast<int>(std::max<int64_t>(0, kMostMigrations - o_.mover->in_flight())));
    return tasks.empty() ? absl::OkStatus() : o_.mover->Start(std::move(tasks));
  }

  // Pages that copies and steps hold come back: steps, publishes and recalls are waited for, migrations are given up.
  absl::Status EndCopies() {
    if (absl::Status status = o_.copies->Drain(); !status.ok()) return status;
    Retire(last_step_ - 1);
    if (o_.mover != nullptr) {
      if (absl::Status status = o_.mover->CancelAll(); !status.ok()) return status;
    }
    return FinishCopies();
  }

  // Destinations for all of the step's tokens. Device pages go to those who ask first, so tails ask first (the next
  // steps write there), then newer blocks before older ones.
  absl::Status AddWrites(StepPlan& plan) {
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const PlanSequence& sequence = plan.sequences[i];
      if (sequence.query_len == 0) continue;
      if (absl::Status status = AddWrite(sequence, i, LastBlock(sequence), plan); !status.ok()) return status;
    }
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const PlanSequence& sequence = plan.sequences[i];
      const int32_t first = (sequence.seq_len - sequence.query_len) / o_.block_size;
      for (int32_t b = LastBlock(sequence) - 1; b >= first; --b) {
        if (absl::Status status = AddWrite(sequence, i, b, plan); !status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  int32_t LastBlock(const PlanSequence& sequence) const { return (sequence.seq_len - 1) / o_.block_size; }

  // The step's tokens in entry `b` of the sequence's table.
  absl::Status AddWrite(const PlanSequence& sequence, size_t index, int32_t b, StepPlan& plan) {
    const int32_t first = sequence.seq_len - sequence.query_len;
    const int32_t begin = std::max(first, b * o_.block_size);
    const int32_t offset = begin - b * o_.block_size;
    const int32_t count = std::min((b + 1) * o_.block_size, sequence.seq_len) - begin;
    const int32_t block = tables_[index][b];
    if (absl::Status status = EndCopiesOf(block, offset); !status.ok()) return status;
    // Sequences that share their first block share its spread over the host tiers.
    const uint32_t name = static_cast<uint32_t>(tables_[index][0]);
    absl::StatusOr<Residency> to = o_.blocks->PrepareWrite(block, offset, count, b, sequence.seq_len, name);
    if (absl::IsResourceExhausted(to.status())) {
      // Destinations of copies in flight may be what is missing.
      if (absl::Status status = EndCopies(); !status.ok()) return status;
      to = o_.blocks->PrepareWrite(block, offset, count, b, sequence.seq_len, name);
    }
    if (!to.ok()) return to.status();
    WriteRun run;
    run.offset = offset;
    run.token = sequence.query_start + begin - first;
    run.num_tokens = count;
    if (to->device_page >= 0) {
      run.k = run.v = static_cast<uint64_t>(to->device_page);
      plan.pool_writes.push_back(run);
    } else if (to->k.index >= 0) {
      run.kind = PageKind::kHost;
      run.k = o_.host->Address(PageRole::kKey, to->k);
      run.v = o_.host->Address(PageRole::kValue, to->v);
      plan.host_writes.push_back(run);
    }  // else the null block: dropped
    plan.tokens_written += count;
    return absl::OkStatus();
  }

  // A write at offset > 0 changes host pages that a recall or a migration in flight may be reading. The recall is
  // waited for, as it is in the device's queue; the migration is given up, also when a write at offset 0 makes it
  // worthless.
  absl::Status EndCopiesOf(int32_t block, int offset) {
    if (block <= 0) return absl::OkStatus();
    const BlockState state = o_.blocks->state(block);
    if (state == BlockState::kMigrating) {
      if (absl::Status status = o_.mover->Cancel(block); !status.ok()) return status;
      return FinishCopies();
    }
    if (state != BlockState::kRecalling || offset == 0) return absl::OkStatus();
    if (absl::Status status = o_.copies->Drain(); !status.ok()) return status;
    return FinishCopies();
  }

  absl::Status AddPages(PlanSequence& sequence, size_t index, const LayerLimits& limits, StepPlan& plan) {
    const int32_t blocks = BlocksOf(sequence.seq_len, o_.block_size);
    host_pages_.clear();
    sequence.pool_pages.begin = static_cast<int32_t>(plan.pages.size());
    for (int32_t b = FirstBlock(sequence, limits.widest_window, o_.block_size); b < blocks; ++b) {
      const int32_t block = tables_[index][b];
      absl::StatusOr<Residency> at = o_.blocks->Resolve(block, b, sequence.seq_len);
      if (!at.ok()) return at.status();
      PlanPage page;
      page.first_position = b * o_.block_size;
      page.num_tokens = std::min(o_.block_size, sequence.seq_len - page.first_position);
      if (at->device_page >= 0) {
        page.num_tokens = std::min(page.num_tokens, at->valid_tokens);
        page.k = page.v = static_cast<uint64_t>(at->device_page);
        plan.pages.push_back(page);
        continue;
      }
      if (at->k.index >= 0) {
        page.num_tokens = std::min(page.num_tokens, at->valid_tokens);
        page.k = o_.host->Address(PageRole::kKey, at->k);
        page.v = o_.host->Address(PageRole::kValue, at->v);
        page.k_tier = at->k.tier;
        page.v_tier = at->v.tier;
        if (at->valid_tokens == o_.block_size) recall_candidates_.push_back(block);
      } else {
        page.k = page.v = o_.host->ZeroPage();  // never written: reads as zeros, counted by the block manager
        page.k_tier = page.v_tier = Tier::kDram;
      }
      host_pages_.push_back(page);
    }
    sequence.pool_pages.end = static_cast<int32_t>(plan.pages.size());
    // The carry makes the streamed share exact over the batch although every sequence streams whole pages.
    int32_t streamed = 0;
    if (o_.device != nullptr) {
      const double wanted = host_pages_.size() * o_.knobs->streaming_share + stream_carry_;
      streamed = std::clamp(static_cast<int32_t>(wanted + 0.5), 0, static_cast<int32_t>(host_pages_.size()));
      stream_carry_ = wanted - streamed;
    }
    plan.pages.insert(plan.pages.end(), host_pages_.begin(), host_pages_.end());
    const int32_t end = static_cast<int32_t>(plan.pages.size());
    sequence.host_pages = {sequence.pool_pages.end, end - streamed};
    sequence.streamed_pages = {end - streamed, end};
    return absl::OkStatus();
  }

  const TieredPlannerOptions o_;
  std::vector<absl::Span<const int32_t>> tables_;  // of the present batch, cut to the blocks in use
  std::vector<PlanPage> host_pages_;               // of the present sequence
  std::vector<int32_t> recall_candidates_;
  std::vector<CopyTask> published_;  // of the present Finish
  double stream_carry_ = 0;
  int64_t last_step_ = 0;
};

}  // namespace

std::unique_ptr<StepPlanner> CreateIdentityPlanner(int block_size) {
  return std::make_unique<IdentityPlanner>(block_size);
}

std::unique_ptr<StepPlanner> CreateTieredPlanner(const TieredPlannerOptions& options) {
  return std::make_unique<TieredPlanner>(options);
}

}  // namespace hybridgen
