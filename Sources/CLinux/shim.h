// Linux's own calls that Swift's Glibc module leaves out, or that C declares with `...`, which Swift cannot call.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <spawn.h>
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

// Closes what the child would have beyond its streams. Hidden as well.
int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *, int);
static inline int close_in_child(posix_spawn_file_actions_t *actions, int first_descriptor) {
  return posix_spawn_file_actions_addclosefrom_np(actions, first_descriptor);
}
