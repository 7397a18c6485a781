// Linux's own calls that Swift's Glibc module leaves out, or that C declares with `...`, which Swift cannot call.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int end_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL); }

// By its number: the C library hides the declaration unless it was asked for before any header.
static inline int allocate_blocks(int descriptor, long byte_count) {
  return (int)syscall(SYS_fallocate, descriptor, 0, 0L, byte_count);
}
