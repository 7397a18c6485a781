// Linux's own calls that Swift's Glibc module leaves out, or that C declares with `...`, which Swift cannot call.
#include <signal.h>
#include <sys/prctl.h>

static inline int end_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL); }
