#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "device.h"

// Only what a function has to leave as it was goes on the stack. swapcontext would ask the kernel for the
// signal mask each time. A jump in place of a return: the processor expects returns to lead to the last call,
// but learns from jumps that one fiber after the other goes on at the same place.
#if defined(__x86_64__)
asm(R"(
  .text
  .p2align 4
  .globl qe_cuda_on_cpu_switch
  .hidden qe_cuda_on_cpu_switch
  .type qe_cuda_on_cpu_switch, @function
qe_cuda_on_cpu_switch:
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
  popq %rcx
  jmp *%rcx
  .size qe_cuda_on_cpu_switch, . - qe_cuda_on_cpu_switch
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .p2align 4
  .globl qe_cuda_on_cpu_switch
  .hidden qe_cuda_on_cpu_switch
  .type qe_cuda_on_cpu_switch, @function
qe_cuda_on_cpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
  .size qe_cuda_on_cpu_switch, . - qe_cuda_on_cpu_switch
)");
#else
#error "no switch between fibers for this processor"
#endif

namespace cuda_on_cpu::fibers {
namespace {

// Words that the switch takes off a stack, and which of them is where it goes on.
#if defined(__x86_64__)
constexpr size_t saved_words = 7, entry_word = 6;
// A function expects the stack as a call leaves it, eight bytes below a multiple of 16.
constexpr size_t words_above = 1;
#else
constexpr size_t saved_words = 20, entry_word = 11;
constexpr size_t words_above = 0;
#endif

constexpr size_t stack_bytes = 128 << 10;

}  // namespace

void *make(void (*entry)()) {
  static size_t made = 0;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void *mapping = mmap(
      nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  // Below the stack there is nothing, so that one that is too deep crashes.
  if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0)
    complain("no memory for a fiber's stack");
  // Tops at the same place of their pages would fall into the same few lines of the cache.
  const size_t stagger = made++ % 15 * 256;
  auto *top = reinterpret_cast<uintptr_t *>(static_cast<char *>(mapping) + page + stack_bytes - stagger);
  uintptr_t *stack = top - words_above - saved_words;
  for (size_t word = 0; word < saved_words; ++word) stack[word] = 0;
  stack[entry_word] = reinterpret_cast<uintptr_t>(entry);
  return stack;
}

}  // namespace cuda_on_cpu::fibers
