// The pages of one arena: which are free, which are allocated, and which are released but may still be in use.
#ifndef MEMORY_PAGE_POOL_H_
#define MEMORY_PAGE_POOL_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace hybridgen {

// Bookkeeping over page indices [0, num_pages). A page has at most one owner. A released page is handed out again only
// when every step that may read or write it has retired and no copy has it pinned; until then it is quarantined.
// Every call is O(1), except RetireThrough: O(pages quarantined by steps).
class PagePool {
 public:
  explicit PagePool(int num_pages);

  // A free page, now allocated; -1 when none is free.
  int32_t Allocate();
  // Ends the ownership of an allocated page.
  void Release(int32_t page);

  // Step `step` (or an earlier one) may read or write this allocated page.
  void Use(int32_t page, int64_t step);
  // A copy in flight reads this allocated page. Pins are counted.
  void Pin(int32_t page);
  void Unpin(int32_t page);

  // True when no unretired step uses the page and no copy pins it: released, it would be free at once.
  bool Idle(int32_t page) const;

  // Steps <= step are complete on every processor.
  void RetireThrough(int64_t step);

  int num_pages() const { return static_cast<int>(pages_.size()); }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_quarantined() const { return num_quarantined_; }
  int num_allocated() const { return num_pages() - num_free() - num_quarantined_; }
  bool allocated(int32_t page) const { return pages_[page].state == PageState::kAllocated; }
  int pins(int32_t page) const { return pages_[page].pins; }

  // Recomputes the counters and lists; for tests.
  absl::Status CheckInvariants() const;

 private:
  enum class PageState : uint8_t { kFree, kAllocated, kQuarantined };
  struct Page {
    int64_t last_step = 0;  // last step that may use the page
    int32_t pins = 0;
    PageState state = PageState::kFree;
  };

  std::vector<Page> pages_;
  std::vector<int32_t> free_;      // last in, first out: the page touched last is the one most likely cached
  std::vector<int32_t> retiring_;  // quarantined pages without pins, waiting for a step
  int num_quarantined_ = 0;        // retiring_ and the released pages that are still pinned
  int64_t retired_ = 0;
};

}  // namespace hybridgen

#endif  // MEMORY_PAGE_POOL_H_
