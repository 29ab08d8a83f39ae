// Free list and epoch quarantine of one arena's pages.
#include "memory/page_pool.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace hybridgen {

PagePool::PagePool(int num_pages) : pages_(num_pages) {
  free_.reserve(num_pages);
  retiring_.reserve(num_pages);
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);  // page 0 is handed out first
}

int32_t PagePool::Allocate() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  pages_[page].state = PageState::kAllocated;
  return page;
}

void PagePool::Release(int32_t page) {
  if (Idle(page)) {
    pages_[page].state = PageState::kFree;
    free_.push_back(page);
    return;
  }
  pages_[page].state = PageState::kQuarantined;
  ++num_quarantined_;
  if (pages_[page].pins == 0) retiring_.push_back(page);
}

void PagePool::Use(int32_t page, int64_t step) { pages_[page].last_step = std::max(pages_[page].last_step, step); }

void PagePool::Pin(int32_t page) { ++pages_[page].pins; }

void PagePool::Unpin(int32_t page) {
  if (--pages_[page].pins > 0 || pages_[page].state != PageState::kQuarantined) return;
  if (Idle(page)) {
    pages_[page].state = PageState::kFree;
    --num_quarantined_;
    free_.push_back(page);
  } else {
    retiring_.push_back(page);
  }
}

bool PagePool::Idle(int32_t page) const { return pages_[page].last_step <= retired_ && pages_[page].pins == 0; }

void PagePool::RetireThrough(int64_t step) {
  retired_ = std::max(retired_, step);
  size_t kept = 0;
  for (const int32_t page : retiring_) {
    if (Idle(page)) {
      pages_[page].state = PageState::kFree;
      --num_quarantined_;
      free_.push_back(page);
    } else {
      retiring_[kept++] = page;
    }
  }
  retiring_.resize(kept);
}

absl::Status PagePool::CheckInvariants() const {
  std::vector<int> listed(pages_.size(), 0);
  for (const int32_t page : free_) {
    ++listed[page];
    if (pages_[page].state != PageState::kFree) return absl::InternalError(absl::StrCat("page ", page, " not free"));
    if (!Idle(page)) return absl::InternalError(absl::StrCat("free page ", page, " is in use"));
  }
  for (const int32_t page : retiring_) {
    ++listed[page];
    if (pages_[page].state != PageState::kQuarantined || pages_[page].pins != 0 || Idle(page)) {
      return absl::InternalError(absl::StrCat("page ", page, " does not wait for a step"));
    }
  }
  int quarantined = 0;
  for (size_t page = 0; page < pages_.size(); ++page) {
    const Page& p = pages_[page];
    const bool pinned_quarantine = p.state == PageState::kQuarantined && p.pins > 0;
    const bool in_a_list = p.state == PageState::kFree || (p.state == PageState::kQuarantined && !pinned_quarantine);
    if (listed[page] != (in_a_list ? 1 : 0)) {
      return absl::InternalError(absl::StrCat("page ", page, " is in ", listed[page], " lists"));
    }
    if (p.state == PageState::kQuarantined) ++quarantined;
  }
  if (quarantined != num_quarantined_) {
    return absl::InternalError(absl::StrCat("quarantined: counted ", num_quarantined_, ", found ", quarantined));
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
