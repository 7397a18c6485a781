// Linux's own calls that Swift's Glibc module leaves out, or that C declares with `...`, which Swift cannot call.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int end_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL); }

// By its number: the C library hides the declaration unless it was asked for before any header.
static inline int allocate_blocks(int descriptor, long byte_count) {
  return (int)syscall(SYS_fallocate, descriptor, 0, 0L, byte_count);
}

// From this size on blocks of the allocator are the kernel's own mappings, and go back to it when they are freed.
static inline void map_blocks_from(int byte_count) {
  mallopt(M_MMAP_THRESHOLD, byte_count);
  mallopt(M_TRIM_THRESHOLD, byte_count);
}

// posix_spawn_file_actions_addclosefrom_np by its symbol: spawn.h hides it unless asked before any header, and asked so it
// brings types that differ from those of Swift's Glibc module.
int close_in_child(void *actions, int first_descriptor) __asm__("posix_spawn_file_actions_addclosefrom_np");
