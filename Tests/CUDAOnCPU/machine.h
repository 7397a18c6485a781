// What runs kernels: every thread of a block is a fiber from its first barrier on.
//
// Blocks run one after the other, on the thread that launches, under the device's lock.
#pragma once
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "fibers.h"

namespace cuda_on_cpu {

/// CUDA's dim3 and uint3.
struct dim3 {
  unsigned x, y, z;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace machine {

/// A kernel of the sources, known by its name.
class Kernel {
 public:
  const char *const name;
  const unsigned most_threads;
  /// The part of all shared memory that it has been seen to write, and in how many blocks one looked.
  char *shared_from = nullptr, *shared_to = nullptr;
  int blocks_watched = 0;

  Kernel(const char *name, unsigned most_threads);
  virtual ~Kernel() = default;
  /// Keeps the arguments of a launch.
  virtual void take(void **parameters) = 0;
  /// Runs the block's threads that have not begun.
  virtual void run_threads() = 0;
  /// Null where there is none.
  static Kernel *find(const char *name);
};

/// Runs all blocks.
void launch(Kernel &kernel, dim3 grid, dim3 block, int order);

/// The host's address of a kernel's argument; null stays null.
void *argument_address(const void *pointer);

enum class State : unsigned char { running, at_barrier, at_warp_operation, released, done };

/// What a warp does together.
enum class Operation : unsigned char { synchronization, exchange, ballot };

struct Thread {
  dim3 index;
  State state;
  Operation operation;
  unsigned char lane, source_lane;
  unsigned mask;
  int line;
  const char *file;
  /// What it brings to a warp's operation, and gets from it.
  uint64_t value;
  /// Of its fiber, while it waits.
  void *stack_pointer;
};

/// The block that runs.
struct Block {
  Kernel *kernel;
  unsigned count, begun, done, at_barrier;
  std::vector<Thread> threads;
  /// Numbers of threads, in the order in which they run.
  std::vector<unsigned> turns;
  Thread *current;
};
extern Block block;

/// The stack to go on with, with `block.current` and `threadIdx` for it.
void *next_stack();
[[noreturn]] void complain_of_mask(unsigned mask, const char *file, int line);

// Inline, so that a thread that goes on need not return from here first, which the processor would predict
// wrongly.

inline void wait(Thread *me, const char *file, int line) {
  me->file = file;
  me->line = line;
  void *next = next_stack();
  if (block.current != me) fibers::qe_cuda_on_cpu_switch(&me->stack_pointer, next);
}

inline void wait_at_barrier(const char *file, int line) {
  Thread *me = block.current;
  me->state = State::at_barrier;
  ++block.at_barrier;
  wait(me, file, line);
}

/// Returns what the operation brings this thread.
inline uint64_t wait_for_warp(
    Operation operation, unsigned mask, uint64_t value, unsigned source_lane, const char *file, int line) {
  Thread *me = block.current;
  if ((mask >> me->lane & 1) == 0) complain_of_mask(mask, file, line);
  me->state = State::at_warp_operation;
  me->operation = operation;
  me->mask = mask;
  me->value = value;
  me->source_lane = static_cast<unsigned char>(source_lane);
  wait(me, file, line);
  return me->value;
}

/// The thread's place in its warp.
inline unsigned lane() { return block.current->lane; }

inline bool begin_thread() {
  if (block.begun == block.count) return false;
  block.current = &block.threads[block.turns[block.begun++]];
  threadIdx = block.current->index;
  return true;
}

inline void end_thread() {
  block.current->state = State::done;
  ++block.done;
}

template <class T>
T argument(void *parameter) {
  const T value = *static_cast<const T *>(parameter);
  if constexpr (std::is_pointer_v<T>)
    return static_cast<T>(argument_address(value));
  else
    return value;
}

template <auto function>
class KernelOf;

/// The function is known to the compiler, so a kernel without barriers is a loop.
template <class... Parameters, void (*function)(Parameters...)>
class KernelOf<function> : public Kernel {
  std::tuple<Parameters...> arguments;

  template <std::size_t... index>
  void take(void **parameters, std::index_sequence<index...>) {
    arguments = std::tuple<Parameters...>(argument<Parameters>(parameters[index])...);
  }

 public:
  using Kernel::Kernel;
  void take(void **parameters) override { take(parameters, std::index_sequence_for<Parameters...>()); }
  void run_threads() override {
    std::apply(
        [](Parameters... values) {
          while (begin_thread()) {
            function(values...);
            end_thread();
          }
        },
        arguments);
  }
};

}  // namespace machine
}  // namespace cuda_on_cpu
