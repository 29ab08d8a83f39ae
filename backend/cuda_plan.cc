#include "backend/cuda_plan.h"

#include <algorithm>

namespace hybridgen {
namespace {

// What the items of one sequence say of its splits.
struct Splits {
  int32_t device_row = -1;  // where the device's part of query token 0 is when the CPU's comes in; -1: it has none
  int32_t cpu = 0;
  int32_t cpu_first_row = INT32_MAX;  // row of the plan's workspace of the CPU's first split, query token 0
};

class Builder {
 public:
  Builder(const StepPlan& plan, const CudaPlanLimits& limits, CudaStep& step)
      : plan_(plan), limits_(limits), step_(step), splits_(plan.sequences.size()) {}

  void Build() {
    step_.Clear();
    step_.step = plan_.step;
    step_.num_tokens = std::max(plan_.num_tokens, limits_.rows);
    AddWrites();
    AddRanges();
    CountSplits();
    AddDeviceItems();
    AddCalls();
  }

 private:
  void AddWrites() {
    for (const WriteRun& run : plan_.pool_writes) {
      step_.num_tokens = std::max(step_.num_tokens, run.token + run.num_tokens);
    }
    if (plan_.pool_writes.empty()) return;
    step_.slots.assign(step_.num_tokens, -1);
    for (const WriteRun& run : plan_.pool_writes) {
      for (int32_t t = 0; t < run.num_tokens; ++t) {
        step_.slots[run.token + t] = static_cast<int64_t>(run.k) * limits_.page_tokens + run.offset + t;
      }
    }
  }

  void AddRanges() {
    step_.kv_end.assign(step_.num_tokens, 0);
    step_.position.assign(step_.num_tokens, 0);
    step_.kv_begin.assign(step_.num_tokens * limits_.windows.size(), 0);
    for (const PlanSequence& sequence : plan_.sequences) {
      for (int32_t t = 0; t < sequence.query_len; ++t) {
        const int32_t row = sequence.query_start + t;
        const int32_t position = sequence.seq_len - sequence.query_len + t;
        step_.position[row] = position;
        step_.kv_end[row] = plan_.causal ? position + 1 : sequence.seq_len;
        for (size_t w = 0; w < limits_.windows.size(); ++w) {
          const int32_t window = limits_.windows[w];
          step_.kv_begin[w * step_.num_tokens + row] = window > 0 ? std::max(0, position + 1 - window) : 0;
        }
      }
    }
  }

  void CountSplits() {
    for (const WorkItem& item : plan_.cpu_items) {
      Splits& s = splits_[item.sequence];
      s.cpu_first_row = std::min(s.cpu_first_row, item.partial_row - item.tokens.begin);
    }
    for (const WorkItem& item : plan_.cpu_items) {
      Splits& s = splits_[item.sequence];
      s.cpu = std::max(s.cpu, CpuSplit(item) + 1);
    }
  }

  int32_t CpuSplit(const WorkItem& item) const {
    return (item.partial_row - item.tokens.begin - splits_[item.sequence].cpu_first_row) /
           plan_.sequences[item.sequence].query_len;
  }

  // A split of a sequence on the device: pages that an item attends.
  struct Split {
    int32_t round;       // of StreamedRounds; -1: pages of the pool
    int32_t first_page;  // of step_.pages
    Range plan_pages;
  };
  using Splitting = absl::Span<const Split>;

  void AddDeviceItems() {
    step_.read_tokens.assign(limits_.windows.size(), {});
    step_.partial_rows = step_.num_tokens;
    RoundBuilder ring(limits_.ring, limits_.page_tokens, limits_.page_bytes, limits_.windows.size(), plan_.host_writes,
                      step_.streamed);
    for (size_t i = 0; i < plan_.device_items.size();) {
      const int32_t sequence = plan_.device_items[i].sequence;
      tiles_.clear();
      device_splits_.clear();
      for (bool first = true; i < plan_.device_items.size() && plan_.device_items[i].sequence == sequence; ++i) {
        const WorkItem& item = plan_.device_items[i];
        // An item of the device has all KV heads, so those that a tile of heads was cut for count once.
        if (item.heads.begin != 0) continue;
        if (item.tokens.begin == 0) {  // a split begins
          first = device_splits_.empty();
          AddSplits(item, ring);
        }
        if (first) tiles_.push_back(item.tokens);
      }
      AddDevicePart(sequence);
    }
    ring.Finish();
  }

  // Pages of the pool and of each round of the ring are splits of their own.
  void AddSplits(const WorkItem& item, RoundBuilder& ring) {
    const auto next_page = [&] { return static_cast<int32_t>(step_.pages.size()); };
    if (item.pool_pages.size() > 0) device_splits_.push_back({-1, next_page(), item.pool_pages});
    for (int32_t p = item.pool_pages.begin; p < item.pool_pages.end; ++p) {
      const PlanPage& page = plan_.pages[p];
      AddPage(page, page.k * limits_.page_bytes, page.v * limits_.page_bytes);
    }
    if (item.host_pages.size() == 0) return;
    first_seen_.clear();
    for (size_t w = 0; w < limits_.windows.size(); ++w) {
      first_seen_.push_back(step_.kv_begin[w * step_.num_tokens + plan_.sequences[item.sequence].query_start]);
    }
    for (int32_t p = item.host_pages.begin; p < item.host_pages.end; ++p) {
      const PlanPage& page = plan_.pages[p];
      const RoundBuilder::Place place = ring.Add(page, first_seen_);
      if (p == item.host_pages.begin || device_splits_.back().round != place.round) {
        device_splits_.push_back({place.round, next_page(), {p, p}});
      }
      ++device_splits_.back().plan_pages.end;
      AddPage(page, place.index * limits_.page_bytes, place.index * limits_.page_bytes);
    }
  }

  void AddPage(const PlanPage& page, uint64_t k, uint64_t v) {
    step_.pages.push_back({k, v, page.first_position, page.num_tokens});
  }

  // Items and merges of a sequence's device part. With streamed pages its rows are, for each query token: the result so
  // far, then those of the splits of one round, or of the pool; a round's merge adds them to the result, so that their
  // number does not grow with that of the rounds.
  void AddDevicePart(int32_t index) {
    const PlanSequence& sequence = plan_.sequences[index];
    Splits& s = splits_[index];
    const bool streamed = device_splits_.back().round >= 0;
    const bool complete = device_splits_.size() == 1 && s.cpu == 0;
    s.device_row = streamed && !complete ? step_.partial_rows : sequence.query_start;
    const int32_t split_row = streamed && !complete ? s.device_row + sequence.query_len : step_.partial_rows;
    for (size_t begin = 0, end = 0; begin < device_splits_.size(); begin = end) {
      const int32_t round = device_splits_[begin].round;
      while (end < device_splits_.size() && device_splits_[end].round == round) ++end;
      const Splitting splits = absl::MakeConstSpan(device_splits_).subspan(begin, end - begin);
      const int32_t count = static_cast<int32_t>(splits.size());
      if (begin == 0 && count == 1) {
        AddItems(sequence, splits[0], complete ? -1 : s.device_row, /*owns_sink=*/true);
        continue;
      }
      for (int32_t i = 0; i < count; ++i) {
        AddItems(sequence, splits[i], split_row + i * sequence.query_len, /*owns_sink=*/begin + i == 0);
      }
      step_.partial_rows = std::max(step_.partial_rows, split_row + count * sequence.query_len);
      std::vector<cuda::MergeItem>& merges = round >= 0              ? step_.streamed.merges
                                             : streamed || s.cpu > 0 ? step_.row_merges
                                                                     : step_.output_merges;
      const int32_t before = begin == 0 ? 0 : 1;
      AddMerges(sequence, s.device_row, split_row - before * sequence.query_len, count + before, merges);
      if (round >= 0) step_.streamed.rounds[round].merges.end = static_cast<int32_t>(merges.size());
    }
    if (!streamed || complete) return;
    step_.partial_rows = std::max(step_.partial_rows, split_row);
    if (s.cpu == 0) AddMerges(sequence, sequence.query_start, s.device_row, 1, step_.output_merges);
  }

  // Rows first_row + t, and as many more `query_len` apart, into row to_row + t, for each query token t.
  static void AddMerges(const PlanSequence& sequence, int32_t to_row, int32_t first_row, int32_t count,
                        std::vector<cuda::MergeItem>& merges) {
    for (int32_t t = 0; t < sequence.query_len; ++t) {
      merges.push_back({to_row + t, first_row + t, count, sequence.query_len});
    }
  }

  // `row`: the partial of query token 0; -1: the output.
  void AddItems(const PlanSequence& sequence, const Split& split, int32_t row, bool owns_sink) {
    StreamedRounds& streamed = step_.streamed;
    for (const Range& tokens : tiles_) {
      cuda::AttendItem to;
      to.first_token = sequence.query_start + tokens.begin;
      to.num_tokens = tokens.size();
      to.first_page = split.first_page;
      to.num_pages = split.plan_pages.size();
      to.owns_sink = owns_sink ? 1 : 0;
      to.partial_row = row < 0 ? -1 : row + tokens.begin;
      const bool decode = to.num_tokens <= limits_.decode_tokens;
      if (split.round < 0) {
        CudaStep::Items& items = decode ? step_.decode : step_.prefill;
        items.list.push_back(to);
        items.max_tokens = std::max(items.max_tokens, to.num_tokens);
      } else {
        std::vector<cuda::AttendItem>& list = decode ? streamed.decode : streamed.prefill;
        int32_t& most = decode ? streamed.max_decode_tokens : streamed.max_prefill_tokens;
        StreamedRound& round = streamed.rounds[split.round];
        list.push_back(to);
        most = std::max(most, to.num_tokens);
        (decode ? round.decode : round.prefill).end = static_cast<int32_t>(list.size());
      }
      CountTokens(to, split.plan_pages);
    }
  }

  // What an item reads: its pages between what its first token sees first and its last token last.
  void CountTokens(const cuda::AttendItem& item, Range pages) {
    const int32_t end = step_.kv_end[item.first_token + item.num_tokens - 1];
    for (size_t w = 0; w < limits_.windows.size(); ++w) {
      const int32_t begin = step_.kv_begin[w * step_.num_tokens + item.first_token];
      for (int32_t p = pages.begin; p < pages.end; ++p) {
        const PlanPage& page = plan_.pages[p];
        const int32_t seen =
            std::max(0, std::min(page.first_position + page.num_tokens, end) - std::max(page.first_position, begin));
        step_.read_tokens[w][Index(page.k_tier)] += seen;
        step_.read_tokens[w][Index(page.v_tier)] += seen;
      }
    }
  }

  // All of a layer's new K/V is written before any token of the layer is attended: calls that only carry K/V come
  // first, and the last of them brings the first queries.
  void AddCalls() {
    AddWriteCalls();
    AddQueryCalls();
    step_.host.tokens_written = static_cast<int64_t>(step_.write_tokens.size());
  }

  // Opens a call that begins where the one before it ends.
  void OpenCall() {
    CudaCall call;
    const auto end = [](const auto& list) { return static_cast<int32_t>(list.size()); };
    call.query_rows = {end(step_.query_tokens), end(step_.query_tokens)};
    call.write_rows = {end(step_.write_tokens), end(step_.write_tokens)};
    call.host_writes = {end(step_.host.host_writes), end(step_.host.host_writes)};
    call.cpu_items = {end(step_.host.cpu_items), end(step_.host.cpu_items)};
    call.cpu_merges = {end(step_.host.merges), end(step_.host.merges)};
    call.joins = {end(step_.joins), end(step_.joins)};
    call.cpu_group_ends.assign(limits_.head_groups, 0);
    step_.calls.push_back(std::move(call));
  }

  void AddWriteCalls() {
    for (const WriteRun& run : plan_.host_writes) {
      for (int32_t done = 0; done < run.num_tokens;) {
        if (step_.calls.empty() || step_.calls.back().write_rows.size() == limits_.max_call_rows) OpenCall();
        CudaCall& call = step_.calls.back();
        WriteRun part = run;
        part.offset += done;
        part.num_tokens = std::min(run.num_tokens - done, limits_.max_call_rows - call.write_rows.size());
        part.token = call.write_rows.size();
        for (int32_t t = 0; t < part.num_tokens; ++t) step_.write_tokens.push_back(run.token + done + t);
        step_.host.host_writes.push_back(part);
        call.write_rows.end += part.num_tokens;
        ++call.host_writes.end;
        done += part.num_tokens;
      }
    }
  }

  void AddQueryCalls() {
    step_.host.causal = plan_.causal;
    step_.host.pages = plan_.pages;
    std::vector<std::vector<const WorkItem*>>& items = items_;
    items.assign(plan_.sequences.size(), {});
    for (const WorkItem& item : plan_.cpu_items) items[item.sequence].push_back(&item);
    size_t call_begin = step_.host.sequences.size();
    for (size_t i = 0; i < plan_.sequences.size(); ++i) {
      const PlanSequence& sequence = plan_.sequences[i];
      if (splits_[i].cpu == 0) continue;
      for (int32_t begin = 0; begin < sequence.query_len;) {
        if (step_.calls.empty()) OpenCall();
        if (step_.calls.back().query_rows.size() == limits_.max_call_rows) {
          CloseCall(call_begin);
          OpenCall();
          call_begin = step_.host.sequences.size();
        }
        const int32_t room = limits_.max_call_rows - step_.calls.back().query_rows.size();
        const int32_t end = std::min(sequence.query_len, begin + room);
        AddPart(i, {begin, end});
        begin = end;
      }
    }
    if (!step_.calls.empty()) CloseCall(call_begin);
  }

  // Query tokens `tokens` of sequence i become rows of the open call.
  void AddPart(size_t i, Range tokens) {
    CudaCall& call = step_.calls.back();
    const PlanSequence& sequence = plan_.sequences[i];
    const Splits& s = splits_[i];
    PlanSequence part = sequence;
    part.query_start = call.query_rows.size() - tokens.begin;
    parts_.push_back({i, tokens, call.partial_rows});
    step_.host.sequences.push_back(part);
    for (int32_t t = tokens.begin; t < tokens.end; ++t) {
      const int32_t row = call.query_rows.size();
      const int32_t token = sequence.query_start + t;
      step_.query_tokens.push_back(token);
      ++call.query_rows.end;
      step_.host.merges.push_back({row, call.partial_rows + t - tokens.begin, s.cpu, tokens.size()});
      ++call.cpu_merges.end;
      const int32_t host_row = kFirstHostRow + row;
      if (s.device_row >= 0) {
        const int32_t row = s.device_row + t;
        step_.joins.push_back({token, row, 2, host_row - row});
      } else {
        step_.joins.push_back({token, host_row, 1, 0});
      }
      ++call.joins.end;
    }
    call.partial_rows += s.cpu * tokens.size();
  }

  // The call's items, in the order of their head groups.
  void CloseCall(size_t first_part) {
    CudaCall& call = step_.calls.back();
    for (int group = 0; group < limits_.head_groups; ++group) {
      for (size_t p = first_part; p < parts_.size(); ++p) {
        const Part& part = parts_[p];
        for (const WorkItem* item : items_[part.sequence]) {
          if (GroupOf(*item) != group) continue;
          WorkItem cut = *item;
          cut.sequence = static_cast<int32_t>(p);
          cut.tokens = {std::max(item->tokens.begin, part.tokens.begin), std::min(item->tokens.end, part.tokens.end)};
          if (cut.tokens.size() <= 0) continue;
          cut.partial_row =
              part.partial_row + CpuSplit(*item) * part.tokens.size() + cut.tokens.begin - part.tokens.begin;
          step_.host.cpu_items.push_back(cut);
          ++call.cpu_items.end;
        }
      }
      call.cpu_group_ends[group] = call.cpu_items.size();
    }
    step_.host_partial_rows = std::max(step_.host_partial_rows, call.partial_rows);
  }

  int GroupOf(const WorkItem& item) const {
    const auto after = std::upper_bound(plan_.cpu_group_ends.begin(), plan_.cpu_group_ends.end(),
                                        static_cast<int32_t>(&item - plan_.cpu_items.data()));
    return static_cast<int>(after - plan_.cpu_group_ends.begin());
  }

  // A sequence's tokens in one call.
  struct Part {
    size_t sequence;
    Range tokens;
    int32_t partial_row;  // of split 0, tokens.begin
  };

  const StepPlan& plan_;
  const CudaPlanLimits& limits_;
  CudaStep& step_;
  std::vector<Splits> splits_;                       // [sequence]
  std::vector<Range> tiles_;                         // of the present sequence's query
  std::vector<Split> device_splits_;                 // of the present sequence, those of the pool first
  std::vector<int32_t> first_seen_;                  // [window] of the present sequence
  std::vector<std::vector<const WorkItem*>> items_;  // [sequence] of the CPU
  std::vector<Part> parts_;                          // [host.sequences]
};

}  // namespace

void CudaStep::Clear() {
  step = 0;
  num_tokens = partial_rows = host_partial_rows = 0;
  slots.clear();
  pages.clear();
  for (Items* items : {&decode, &prefill}) {
    items->list.clear();
    items->max_tokens = 0;
  }
  kv_begin.clear();
  kv_end.clear();
  position.clear();
  output_merges.clear();
  row_merges.clear();
  joins.clear();
  streamed.Clear();
  read_tokens.clear();
  query_tokens.clear();
  write_tokens.clear();
  calls.clear();
  host.Clear();
}

void BuildCudaStep(const StepPlan& plan, const CudaPlanLimits& limits, CudaStep& step) {
  Builder(plan, limits, step).Build();
}

}  // namespace hybridgen
