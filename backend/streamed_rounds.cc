#include "backend/streamed_rounds.h"

#include <algorithm>

namespace hybridgen {

void StreamedRounds::Clear() {
  rounds.clear();
  jobs_of.clear();
  jobs.clear();
  slots.clear();
  decode.clear();
  prefill.clear();
  max_decode_tokens = max_prefill_tokens = 0;
  merges.clear();
}

RoundBuilder::RoundBuilder(const RingLimits& limits, int page_tokens, uint64_t page_bytes, size_t num_windows,
                           absl::Span<const WriteRun> host_writes, StreamedRounds& out)
    : limits_(limits), page_tokens_(page_tokens), page_bytes_(page_bytes), num_windows_(num_windows), out_(out) {
  for (const WriteRun& run : host_writes) written_[run.k] = &run;
}

RoundBuilder::Place RoundBuilder::Add(const PlanPage& page, absl::Span<const int32_t> first_seen) {
  auto found = index_.find(page.k);
  if (out_.rounds.empty() || (found == index_.end() && static_cast<int32_t>(entries_.size()) == limits_.pages)) {
    EndRound();
    out_.rounds.emplace_back();
    found = index_.end();
  }
  const int32_t index = found != index_.end() ? found->second : static_cast<int32_t>(entries_.size());
  if (found == index_.end()) {
    index_[page.k] = index;
    entries_.push_back({page.k, page.v});
    seen_.resize(entries_.size() * num_windows_, 0);
    if (const auto written = written_.find(page.k); written != written_.end()) {
      const WriteRun& run = *written->second;
      entries_.back().is_new = run.offset == 0;
      for (int32_t t = 0; t < run.num_tokens; ++t) {
        slots_.push_back({run.token + t, static_cast<int64_t>(index) * page_tokens_ + run.offset + t});
      }
    }
  }
  entries_[index].num_tokens = std::max(entries_[index].num_tokens, page.num_tokens);
  for (size_t w = 0; w < num_windows_; ++w) {
    if (page.first_position + page.num_tokens > first_seen[w]) seen_[index * num_windows_ + w] = 1;
  }
  return {static_cast<int32_t>(out_.rounds.size()) - 1, index};
}

void RoundBuilder::EndRound() {
  if (out_.rounds.empty()) return;
  const auto add = [&](size_t window, bool is_new) {
    const int32_t begin = static_cast<int32_t>(out_.jobs.size());
    for (size_t i = 0; i < entries_.size(); ++i) {
      const Entry& entry = entries_[i];
      if (seen_[i * num_windows_ + window] == 0 || entry.is_new != is_new) continue;
      for (int group = 0; group < limits_.head_groups; ++group) {
        const uint64_t strided = i * page_bytes_ + group * limits_.group_bytes;
        const uint64_t packed = group * limits_.head_group_stride;
        out_.jobs.push_back({strided, strided, entry.k + packed, entry.v + packed, entry.num_tokens});
      }
    }
    return Range{begin, static_cast<int32_t>(out_.jobs.size())};
  };
  for (size_t w = 0; w < num_windows_; ++w) {
    const Range old_pages = add(w, /*is_new=*/false);
    out_.jobs_of.push_back({old_pages, add(w, /*is_new=*/true)});
  }
  StreamedRound& round = out_.rounds.back();
  round.slots.begin = round.slots.end = static_cast<int32_t>(out_.slots.size());
  if (!slots_.empty()) {
    const auto [first, last] = std::minmax_element(slots_.begin(), slots_.end());
    round.first_token = first->first;
    out_.slots.resize(out_.slots.size() + last->first - first->first + 1, -1);
    for (const auto& [token, slot] : slots_) out_.slots[round.slots.begin + token - round.first_token] = slot;
    round.slots.end = static_cast<int32_t>(out_.slots.size());
  }
  entries_.clear();
  seen_.clear();
  index_.clear();
  slots_.clear();
}

void RoundBuilder::Finish() {
  EndRound();
  // A round's lists begin where those of the round before end; one that has none of a kind has not said where.
  StreamedRound before;
  for (StreamedRound& round : out_.rounds) {
    for (Range StreamedRound::*list : {&StreamedRound::decode, &StreamedRound::prefill, &StreamedRound::merges}) {
      (round.*list).begin = (before.*list).end;
      (round.*list).end = std::max((round.*list).begin, (round.*list).end);
    }
    before = round;
  }
}

}  // namespace hybridgen
