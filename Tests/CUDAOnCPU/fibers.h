// Stacks, and going from one to another without a system call.
#pragma once

namespace cuda_on_cpu::fibers {

/// A new stack on which `entry` runs once one switches to it. `entry` must not return.
void *make(void (*entry)());

/// Leaves this stack, whose pointer goes to `from`, for another one. Returns when somebody switches back.
extern "C" void qe_cuda_on_cpu_switch(void **from, void *to);

}  // namespace cuda_on_cpu::fibers
