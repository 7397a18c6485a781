// Linux's own calls that Swift's Glibc module leaves out, or that C declares with `...`, which Swift cannot call.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>

static inline int end_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL); }
static inline int signal_descriptor(const sigset_t *set) { return signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK); }
