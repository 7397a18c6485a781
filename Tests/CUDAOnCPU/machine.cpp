#include "machine.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "device.h"

// Where all shared memory of all kernels stands.
extern "C" {
extern char __start_qe_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_qe_shared[] __attribute__((weak, visibility("hidden")));
}

namespace cuda_on_cpu::machine {

Block block;

namespace {

constexpr unsigned warp_size = 32;
constexpr size_t most_shared_bytes = 48 << 10;
constexpr int blocks_to_watch = 16;

/// Fibers that wait for threads to run.
std::vector<void *> idle_fibers;
/// The stack of whom launched.
void *launching_stack;
/// Threads whose turn is to come before the next release.
std::vector<unsigned> released;
size_t next_released;
/// Whether this thread runs a kernel.
thread_local bool is_launching = false;

std::map<std::string, Kernel *> &kernels() {
  static std::map<std::string, Kernel *> all;
  return all;
}

const char *name_of(const Thread &thread) {
  if (thread.state == State::at_barrier) return "__syncthreads";
  switch (thread.operation) {
    case Operation::synchronization: return "__syncwarp";
    case Operation::exchange: return "a shuffle";
    case Operation::ballot: return "a vote";
  }
  return "";
}

bool are_alike(const Thread &one, const Thread &other) {
  if (one.state != other.state) return false;
  if (one.state == State::done) return true;
  if (one.line != other.line || (one.file != other.file && strcmp(one.file, other.file) != 0)) return false;
  return one.state == State::at_barrier || (one.operation == other.operation && one.mask == other.mask);
}

/// Says where all threads are, and aborts.
[[noreturn]] void complain_of_block(const char *what) {
  std::string text = what;
  text += " in " + std::string(block.kernel->name) + ", block " + std::to_string(blockIdx.x) + ", " +
          std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z);
  std::vector<unsigned> told(block.count);
  for (unsigned first = 0; first < block.count; ++first) {
    if (told[first]) continue;
    const Thread &thread = block.threads[first];
    unsigned count = 0;
    for (unsigned other = first; other < block.count; ++other) {
      if (told[other] || !are_alike(thread, block.threads[other])) continue;
      told[other] = 1;
      ++count;
    }
    char line[1024];
    if (thread.state == State::done)
      snprintf(line, sizeof line, "\n  %u threads, the first is %u, have returned", count, first);
    else
      snprintf(
          line, sizeof line, "\n  %u threads, the first is %u, wait at %s, %s:%d", count, first,
          name_of(thread), thread.file, thread.line);
    text += line;
    if (thread.state == State::at_warp_operation) {
      snprintf(line, sizeof line, ", for the lanes %#010x", thread.mask);
      text += line;
    }
  }
  complain("%s", text.c_str());
}

void release_barrier() {
  for (const Thread &thread : block.threads)
    if (!are_alike(thread, block.threads[0])) complain_of_block("Threads wait at different barriers");
  block.at_barrier = 0;
  released = block.turns;
}

/// Carries out an operation for lanes that have all come to it.
void operate(Thread *warp, unsigned lanes) {
  uint64_t results[warp_size];
  uint64_t votes = 0;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(__builtin_ctz(rest));
    if (warp[lane].value != 0) votes |= 1u << lane;
    const unsigned source = warp[lane].source_lane;
    // A lane that takes no part has nothing to give.
    results[lane] = lanes >> source & 1 ? warp[source].value : unwritten * 0x1'0000'0001ull;
  }
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(__builtin_ctz(rest));
    warp[lane].value = warp[lane].operation == Operation::ballot ? votes : results[lane];
    warp[lane].state = State::released;
  }
}

/// Operations whose lanes have all come; lanes that have returned are not waited for.
void release_warp(Thread *warp, unsigned count) {
  unsigned waiting = 0, alive = 0;
  for (unsigned lane = 0; lane < count; ++lane) {
    alive |= unsigned{warp[lane].state != State::done} << lane;
    waiting |= unsigned{warp[lane].state == State::at_warp_operation} << lane;
  }
  while (waiting != 0) {
    const auto first = static_cast<unsigned>(__builtin_ctz(waiting));
    const unsigned lanes = warp[first].mask & alive;
    bool have_all_come = true;
    for (unsigned rest = lanes; have_all_come && rest != 0; rest &= rest - 1)
      have_all_come = are_alike(warp[first], warp[__builtin_ctz(rest)]);
    if (have_all_come) operate(warp, lanes);
    waiting &= have_all_come ? ~lanes : ~(1u << first);
  }
}

void release() {
  released.clear();
  next_released = 0;
  if (block.at_barrier == block.count) return release_barrier();
  if (block.at_barrier != 0 && block.at_barrier + block.done == block.count)
    complain_of_block("A barrier is not reached by all threads");
  for (unsigned first = 0; first < block.count; first += warp_size)
    release_warp(&block.threads[first], std::min(warp_size, block.count - first));
  for (unsigned number : block.turns)
    if (block.threads[number].state == State::released) released.push_back(number);
  if (released.empty()) complain_of_block("Deadlock");
}

/// Begins threads until one waits, which takes the fiber until it is through, and so on.
void run_fiber() {
  for (;;) {
    block.kernel->run_threads();
    void *next = next_stack();
    idle_fibers.push_back(nullptr);
    fibers::qe_cuda_on_cpu_switch(&idle_fibers.back(), next);
  }
}

void fill_shared(char *from, char *to) {
  for (; from < to; from += sizeof unwritten) memcpy(from, &unwritten, sizeof unwritten);
}

/// Learns which part of shared memory is the kernel's from what it changes.
void watch_shared(Kernel &kernel) {
  size_t written_bytes = 0;
  for (char *at = __start_qe_shared; at < __stop_qe_shared; at += sizeof unwritten) {
    if (memcmp(at, &unwritten, sizeof unwritten) == 0) continue;
    written_bytes += sizeof unwritten;
    kernel.shared_from = kernel.shared_from == nullptr ? at : std::min(kernel.shared_from, at);
    kernel.shared_to = std::max(kernel.shared_to, at + sizeof unwritten);
  }
  if (written_bytes > most_shared_bytes)
    complain(
        "%s uses %zu bytes of shared memory, a block has %zu", kernel.name, written_bytes, most_shared_bytes);
}

void run_block() {
  Kernel &kernel = *block.kernel;
  const bool is_watched = kernel.blocks_watched < blocks_to_watch;
  if (is_watched)
    fill_shared(__start_qe_shared, __stop_qe_shared);
  else
    fill_shared(kernel.shared_from, kernel.shared_to);
  block.begun = block.done = block.at_barrier = 0;
  released.clear();
  next_released = 0;
  fibers::qe_cuda_on_cpu_switch(&launching_stack, next_stack());
  if (!is_watched) return;
  watch_shared(kernel);
  ++kernel.blocks_watched;
}

struct sigaction action_before;

/// A last message, then whatever a fault leads to without it.
void explain_fault(int signal, siginfo_t *information, void *) {
  sigaction(signal, &action_before, nullptr);
  if (!is_launching) return;
  char place[256], text[768];
  memory::describe(information->si_addr, place, sizeof place);
  const int length = snprintf(
      text, sizeof text, "CUDA on the CPU: %s, block %u, %u, %u, thread %u, %u, %u, touches %p, %s\n",
      block.kernel->name, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z,
      information->si_addr, place);
  if (length > 0 && write(STDERR_FILENO, text, std::min(sizeof text, static_cast<size_t>(length))) < 0)
    return;
}

void explain_faults() {
  static const bool done = [] {
    struct sigaction action = {};
    action.sa_sigaction = explain_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &action_before);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

void *next_stack() {
  if (block.begun < block.count) {
    block.current = nullptr;
    if (idle_fibers.empty()) return fibers::make(run_fiber);
    void *stack = idle_fibers.back();
    idle_fibers.pop_back();
    return stack;
  }
  if (next_released == released.size()) {
    if (block.done == block.count) return launching_stack;
    release();
  }
  block.current = &block.threads[released[next_released++]];
  block.current->state = State::running;
  threadIdx = block.current->index;
  return block.current->stack_pointer;
}

Kernel::Kernel(const char *name, unsigned most_threads) : name(name), most_threads(most_threads) {
  if (!kernels().emplace(name, this).second) complain("there are two kernels %s", name);
}

Kernel *Kernel::find(const char *name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

void complain_of_mask(unsigned mask, const char *file, int line) {
  complain("%s: lane %u is not among the lanes %#010x, %s:%d", block.kernel->name, lane(), mask, file, line);
}

void *argument_address(const void *pointer) {
  if (pointer == nullptr) return nullptr;
  return memory::at(reinterpret_cast<uintptr_t>(pointer), 0, 1, "argument of a kernel");
}

void launch(Kernel &kernel, dim3 grid, dim3 shape, int order) {
  explain_faults();
  gridDim = grid;
  blockDim = shape;
  block.kernel = &kernel;
  block.count = shape.x * shape.y * shape.z;
  block.threads.resize(block.count);
  for (unsigned number = 0; number < block.count; ++number) {
    Thread &thread = block.threads[number];
    thread.index = {number % shape.x, number / shape.x % shape.y, number / shape.x / shape.y};
    thread.lane = number % warp_size;
  }
  block.turns.resize(block.count);
  std::iota(block.turns.begin(), block.turns.end(), 0);
  if (order == 1) std::reverse(block.turns.begin(), block.turns.end());

  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  std::minstd_rand random(static_cast<unsigned>(order));
  std::vector<size_t> shuffled;
  if (order > 1) {
    shuffled.resize(blocks);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    std::shuffle(shuffled.begin(), shuffled.end(), random);
  }
  is_launching = true;
  for (size_t turn = 0; turn < blocks; ++turn) {
    const size_t number = order == 0 ? turn : order == 1 ? blocks - 1 - turn : shuffled[turn];
    blockIdx = {
        static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
        static_cast<unsigned>(number / grid.x / grid.y)};
    if (order > 1) std::shuffle(block.turns.begin(), block.turns.end(), random);
    run_block();
  }
  is_launching = false;
}

}  // namespace cuda_on_cpu::machine
