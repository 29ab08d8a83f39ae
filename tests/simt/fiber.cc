// Fibres over Boost.Context.
#include "tests/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace hybridgen::simt {
namespace {

void StartSwitch(void** save, const void* bottom, size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}

void FinishSwitch(void* fake_stack, const void** bottom, size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#endif
}

}  // namespace

Stack::Stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    std::perror("mapping the stack of a fibre");
    std::abort();  // a test instrument without memory has nothing to report to
  }
  bottom_ = static_cast<char*>(memory) + page;
}

Stack::~Stack() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(bottom_, kBytes);  // frames that were dropped left their redzones
#endif
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(bottom_ - page, page + kBytes);
}

std::unique_ptr<Stack> StackPool::Take() {
  if (free_.empty()) return std::make_unique<Stack>();
  std::unique_ptr<Stack> stack = std::move(free_.back());
  free_.pop_back();
  return stack;
}

void Fiber::Start(std::unique_ptr<Stack> stack, void (*body)(void*), void* argument) {
  stack_ = std::move(stack);
  body_ = body;
  argument_ = argument;
  inside_ = boost::context::detail::make_fcontext(stack_->top(), Stack::kBytes, &Fiber::Main);
  inside_fake_stack_ = nullptr;
}

void Fiber::Main(boost::context::detail::transfer_t from) {
  Fiber* self = static_cast<Fiber*>(from.data);
  self->outside_ = from.fctx;
  FinishSwitch(nullptr, &self->outside_bottom_, &self->outside_size_);
  self->body_(self->argument_);
}

void Fiber::Enter() {
  StartSwitch(&outside_fake_stack_, stack_->bottom(), Stack::kBytes);
  inside_ = boost::context::detail::jump_fcontext(inside_, this).fctx;
  FinishSwitch(outside_fake_stack_, nullptr, nullptr);
}

void Fiber::Leave(Last last) {
  StartSwitch(last == Last::kYes ? nullptr : &inside_fake_stack_, outside_bottom_, outside_size_);
  outside_ = boost::context::detail::jump_fcontext(outside_, nullptr).fctx;
  FinishSwitch(inside_fake_stack_, &outside_bottom_, &outside_size_);
}

}  // namespace hybridgen::simt
