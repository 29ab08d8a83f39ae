// A fibre: a stack of its own that is entered and left by a few instructions. Boost.Context underneath, with the
// address sanitizer told of every switch.
#ifndef TESTS_SIMT_FIBER_H_
#define TESTS_SIMT_FIBER_H_

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <memory>
#include <vector>

namespace hybridgen::simt {

// Memory of one stack, with a page below it that faults.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  char* top() const { return bottom_ + kBytes; }
  char* bottom() const { return bottom_; }

#ifdef HYBRIDGEN_SANITIZER
  static constexpr size_t kBytes = 256 << 10;  // redzones make frames larger
#else
  static constexpr size_t kBytes = 64 << 10;
#endif

 private:
  char* bottom_;
};

// Stacks are mapped once and used again by later fibres.
class StackPool {
 public:
  std::unique_ptr<Stack> Take();
  void Give(std::unique_ptr<Stack> stack) { free_.push_back(std::move(stack)); }

 private:
  std::vector<std::unique_ptr<Stack>> free_;
};

// Runs `body(argument)` when entered. The body must not return: its last act is a Leave that is never followed by an
// Enter. A fibre may be dropped at any time; its frames are then forgotten, not unwound, so they must own nothing.
class Fiber {
 public:
  void Start(std::unique_ptr<Stack> stack, void (*body)(void*), void* argument);
  // Called from outside: runs the fibre until it leaves.
  void Enter();
  // Called on the fibre: returns to whoever entered it, until the next Enter. `last`: there will be none.
  enum class Last { kNo, kYes };
  void Leave(Last last);
  std::unique_ptr<Stack> TakeStack() { return std::move(stack_); }

 private:
  static void Main(boost::context::detail::transfer_t from);

  std::unique_ptr<Stack> stack_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  boost::context::detail::fcontext_t inside_ = nullptr;   // where to go on
  boost::context::detail::fcontext_t outside_ = nullptr;  // whoever entered
  // For the address sanitizer: the outside stack, and what it keeps of each side while it is left.
  const void* outside_bottom_ = nullptr;
  size_t outside_size_ = 0;
  void* inside_fake_stack_ = nullptr;
  void* outside_fake_stack_ = nullptr;
};

}  // namespace hybridgen::simt

#endif  // TESTS_SIMT_FIBER_H_
