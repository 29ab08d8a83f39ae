#include "backend/cuda_plan.h"

#include <algorithm>

namespace hybridgen {
namespace {

// What the items of one sequence say of its splits.
struct Splits {
  int32_t device = 0;
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

  // An item of the device has all KV heads, so those that a tile of heads was cut for count once.
  static bool IsDeviceItem(const WorkItem& item) { return item.heads.begin == 0; }

  void CountSplits() {
    for (const WorkItem& item : plan_.device_items) {
      if (IsDeviceItem(item) && item.tokens.begin == 0) ++splits_[item.sequence].device;
    }
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

  void AddDeviceItems() {
    step_.device_tokens.assign(limits_.windows.size(), 0);
    int32_t rows = step_.num_tokens;
    int32_t last = -1, split = 0, first_row = 0, first_page = 0;
    for (const WorkItem& item : plan_.device_items) {
      if (!IsDeviceItem(item)) continue;
      const PlanSequence& sequence = plan_.sequences[item.sequence];
      const Splits& s = splits_[item.sequence];
      if (item.sequence != last) {
        last = item.sequence;
        split = -1;
        first_row = rows;
        if (s.device > 1) {
          AddSplitMerges(sequence, s, first_row);
          rows += s.device * sequence.query_len;
        }
      }
      if (item.tokens.begin == 0) {  // a split begins
        ++split;
        first_page = static_cast<int32_t>(step_.pages.size());
        for (int32_t p = item.pool_pages.begin; p < item.pool_pages.end; ++p) {
          const PlanPage& page = plan_.pages[p];
          step_.pages.push_back(
              {page.k * limits_.page_bytes, page.v * limits_.page_bytes, page.first_position, page.num_tokens});
        }
      }
      cuda::AttendItem to;
      to.first_token = sequence.query_start + item.tokens.begin;
      to.num_tokens = item.tokens.size();
      to.first_page = first_page;
      to.num_pages = item.pool_pages.size();
      to.owns_sink = item.owns_sink ? 1 : 0;
      if (s.device > 1) {
        to.partial_row = first_row + split * sequence.query_len + item.tokens.begin;
      } else if (s.cpu > 0) {
        to.partial_row = to.first_token;
      }
      CudaStep::Items& items = to.num_tokens <= limits_.decode_tokens ? step_.decode : step_.prefill;
      items.list.push_back(to);
      items.max_tokens = std::max(items.max_tokens, to.num_tokens);
      CountTokens(to);
    }
    step_.partial_rows = rows;
  }

  void AddSplitMerges(const PlanSequence& sequence, const Splits& s, int32_t first_row) {
    std::vector<cuda::MergeItem>& merges = s.cpu > 0 ? step_.row_merges : step_.output_merges;
    for (int32_t t = 0; t < sequence.query_len; ++t) {
      merges.push_back({sequence.query_start + t, first_row + t, s.device, sequence.query_len});
    }
  }

  // What an item reads: its pages between what its first token sees first and its last token last.
  void CountTokens(const cuda::AttendItem& item) {
    const int32_t end = step_.kv_end[item.first_token + item.num_tokens - 1];
    for (size_t w = 0; w < limits_.windows.size(); ++w) {
      const int32_t begin = step_.kv_begin[w * step_.num_tokens + item.first_token];
      for (int32_t p = item.first_page; p < item.first_page + item.num_pages; ++p) {
        const KvPage& page = step_.pages[p];
        step_.device_tokens[w] +=
            std::max(0, std::min(page.first_position + page.num_tokens, end) - std::max(page.first_position, begin));
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
      if (s.device > 0) {
        step_.joins.push_back({token, token, 2, host_row - token});
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
  device_tokens.clear();
  query_tokens.clear();
  write_tokens.clear();
  calls.clear();
  host.Clear();
}

void BuildCudaStep(const StepPlan& plan, const CudaPlanLimits& limits, CudaStep& step) {
  Builder(plan, limits, step).Build();
}

}  // namespace hybridgen
