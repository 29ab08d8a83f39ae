// Schedules sequences the way an engine does.
#include "tests/harness/sequences.h"

#include <algorithm>

namespace hybridgen {
namespace {

int BlocksOf(int tokens, int block_size) { return (tokens + block_size - 1) / block_size; }

}  // namespace

Sequences::Sequences(const HarnessOptions& options) : options_(options), random_(options.seed) {
  num_blocks_ = 1 + options.spare_blocks;
  for (int prompt : options.prompt_tokens) {
    num_blocks_ += BlocksOf(prompt + options.decode_tokens + options.draft_tokens, options.config.block_size);
  }
  for (int64_t block = 1; block < num_blocks_; ++block) free_blocks_.push_back(static_cast<int32_t>(block));
}

int Sequences::max_blocks_per_sequence() const {
  const int longest = *std::max_element(options_.prompt_tokens.begin(), options_.prompt_tokens.end());
  return BlocksOf(longest + options_.decode_tokens + options_.draft_tokens, options_.config.block_size);
}

void Sequences::Begin() {
  for (const Sequence& sequence : sequences_) {
    free_blocks_.insert(free_blocks_.end(), sequence.blocks.begin(), sequence.blocks.end());
  }
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), random_);
  sequences_.clear();
  for (int prompt : options_.prompt_tokens) {
    Sequence sequence;
    sequence.request = next_request_++;
    sequence.prompt_tokens = prompt;
    sequence.final_tokens = prompt + options_.decode_tokens;
    sequences_.push_back(sequence);
  }
}

std::vector<StepEntry> Sequences::NextStep() {
  std::vector<StepEntry> step;
  int budget = options_.step_tokens;
  for (size_t i = 0; i < sequences_.size() && budget > 0; ++i) {
    Sequence& sequence = sequences_[i];
    if (sequence.computed_tokens >= sequence.final_tokens) continue;
    const bool prefilling = sequence.computed_tokens < sequence.prompt_tokens;
    const int wanted = prefilling ? sequence.prompt_tokens - sequence.computed_tokens : 1 + options_.draft_tokens;
    const int num_tokens = std::min(wanted, budget);
    budget -= num_tokens;
    const int blocks = BlocksOf(sequence.computed_tokens + num_tokens, options_.config.block_size);
    while (static_cast<int>(sequence.blocks.size()) < blocks) {
      sequence.blocks.push_back(free_blocks_.back());
      free_blocks_.pop_back();
    }
    step.push_back({static_cast<int>(i), num_tokens});
  }
  return step;
}

void Sequences::Finish(const std::vector<StepEntry>& step) {
  for (const StepEntry& entry : step) {
    Sequence& sequence = sequences_[entry.sequence];
    const bool prefilling = sequence.computed_tokens < sequence.prompt_tokens;
    // Of a decode step the first token always stands, the others are drafts.
    const int accepted =
        prefilling ? entry.num_tokens : std::uniform_int_distribution<int>(1, entry.num_tokens)(random_);
    sequence.computed_tokens = std::min(sequence.computed_tokens + accepted, sequence.final_tokens);
  }
}

}  // namespace hybridgen
