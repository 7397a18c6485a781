#ifndef QUANTEASE_NEAREST_CODE_H
#define QUANTEASE_NEAREST_CODE_H

#include "dispatch.h"

// The nearest code to `value`, which is in units of codes.
INLINED float nearest_code(float value, float maximum_code) {
  // Adding and taking away 1.5 · 2²³ leaves the nearest integer, ties to even, for values below 2²².
  const float rounding_magic = 12582912.0f;
  float clamped = value > 0.0f ? value : 0.0f;
  clamped = clamped < maximum_code ? clamped : maximum_code;
  return (clamped + rounding_magic) - rounding_magic;
}

#endif
