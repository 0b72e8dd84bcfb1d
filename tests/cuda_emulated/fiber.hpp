#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define TERRACE_ASAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TERRACE_ASAN_FIBERS 1
#endif
#endif
#if defined(TERRACE_ASAN_FIBERS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the callee's registers and the stack at *from, and goes on where `to` was saved. swapcontext would do, with a
// system call for the signal mask each time: a test switches millions of times.
asm(R"(
.text
.weak terrace_switch_stack
.type terrace_switch_stack, @function
terrace_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size terrace_switch_stack, .-terrace_switch_stack
)");
extern "C" void terrace_switch_stack(void** from, void* to);
#else
#include <ucontext.h>
#endif

namespace emulator {

/// A function with a stack of its own that can be left in the middle and gone on with. One thread of the operating
/// system drives all of them. A fiber that is never gone on with leaves its objects undestroyed: only trivial ones may
/// be alive at a yield.
class fiber {
 public:
  static constexpr std::size_t stack_bytes = 256u << 10;

  fiber() : stack_(static_cast<std::byte*>(std::aligned_alloc(64, stack_bytes))) {}

  /// Runs `entry(argument)` at the next resume. What ran before is forgotten.
  void start(void (*entry)(void*), void* argument) {
    entry_ = entry;
    argument_ = argument;
#if defined(TERRACE_ASAN_FIBERS)
    __asan_unpoison_memory_region(stack_.get(), stack_bytes);
#endif
#if defined(__x86_64__)
    auto* top = reinterpret_cast<void**>(stack_.get() + stack_bytes) - 3;
    *top = nullptr;  // where begin would return to; it does not. Aligned as after a call
    *--top = reinterpret_cast<void*>(&begin);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    own_ = top;
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = stack_bytes;
    makecontext(&own_, &begin, 0);
#endif
  }
  /// Goes on with it, until it yields or ends.
  void resume() {
    running() = this;
#if defined(TERRACE_ASAN_FIBERS)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_.get(), stack_bytes);
    switch_stack(driver_, own_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    switch_stack(driver_, own_);
#endif
  }
  /// Called in the fiber: back to where it was resumed.
  void yield(bool for_ever = false) {
#if defined(TERRACE_ASAN_FIBERS)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake, driver_stack_, driver_bytes_);
    switch_stack(own_, driver_);
    __sanitizer_finish_switch_fiber(fake, &driver_stack_, &driver_bytes_);
#else
    static_cast<void>(for_ever);
    switch_stack(own_, driver_);
#endif
  }

 private:
#if defined(__x86_64__)
  using context = void*;
  static void switch_stack(context& from, context& to) { terrace_switch_stack(&from, to); }
#else
  using context = ucontext_t;
  static void switch_stack(context& from, context& to) { swapcontext(&from, &to); }
#endif
  static fiber*& running() {
    static fiber* one = nullptr;
    return one;
  }
  static void begin() {
    fiber& self = *running();
#if defined(TERRACE_ASAN_FIBERS)
    __sanitizer_finish_switch_fiber(nullptr, &self.driver_stack_, &self.driver_bytes_);
#endif
    self.entry_(self.argument_);
    self.yield(true);
    std::abort();
  }

  struct freed {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, freed> stack_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  context own_{}, driver_{};
#if defined(TERRACE_ASAN_FIBERS)
  const void* driver_stack_ = nullptr;
  std::size_t driver_bytes_ = 0;
#endif
};

}  // namespace emulator
