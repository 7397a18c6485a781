#ifndef QUANTEASE_NEAREST_CODE_H
#define QUANTEASE_NEAREST_CODE_H

// The nearest code to `value`, which is in units of codes.
static inline __attribute__((always_inline)) float nearest_code(float value, float maximum_code) {
  // Adding and taking away 1.5 · 2²³ leaves the nearest integer, ties to even, for values below 2²².
  const float rounding_magic = 12582912.0f;
  float clamped = value > 0.0f ? value : 0.0f;
  clamped = clamped < maximum_code ? clamped : maximum_code;
  return (clamped + rounding_magic) - rounding_magic;
}

#endif
