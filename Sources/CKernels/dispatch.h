#ifndef QUANTEASE_DISPATCH_H
#define QUANTEASE_DISPATCH_H

// A function marked QE_DISPATCH is compiled once for each level of x86-64, and the loader picks the best
// one that the processor has. Elsewhere the compiler's default target already has its vector unit.
#if defined(__x86_64__) && defined(__ELF__)
#define QE_DISPATCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define QE_DISPATCH
#endif

// What such a function calls must be compiled into every one of its versions.
#define INLINED static inline __attribute__((always_inline))

// For loops whose output may be their input: element i of the one comes from element i of the other alone.
#define EACH_ELEMENT_ON_ITS_OWN _Pragma("clang loop vectorize(assume_safety)")

#endif
