#include "elementwise.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "dispatch.h"

#pragma clang fp contract(fast)

// exp(x) with a relative error below 2e-7 for x in [-87, 88]; arguments outside are moved to the ends.
// exp(x) = 2ⁿ · exp(r), |r| <= ln 2 / 2, and exp(r) = 1 + r + r² q(r), q fitted for least relative error.
// There is no branch and no call, so that loops over it vectorise.
INLINED float exponential(float x) {
  // Comparisons that let NaN through.
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // Adding 1.5 · 2²³ leaves the nearest whole number in the low bits of the sum.
  const float magic = 12582912.0f;
  const float sum = x * 1.44269504f + magic;
  const float n = sum - magic;
  // ln 2 in two parts: n times the first is exact.
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float q = 1.37513818e-3f;
  q = q * r + 8.36892333e-3f;
  q = q * r + 4.16695327e-2f;
  q = q * r + 1.66665182e-1f;
  q = q * r + 4.99999881e-1f;
  const float p = 1.0f + (r + r * r * q);
  // The low bits of the sum, moved to the exponent's place, are n · 2²³: an addition multiplies by 2ⁿ.
  uint32_t bits, exponent;
  memcpy(&bits, &p, sizeof bits);
  memcpy(&exponent, &sum, sizeof exponent);
  bits += exponent << 23;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

INLINED float relu(float x) { return x < 0 ? 0 : x; }

INLINED float relu_squared(float x) { return x < 0 ? 0 : x * x; }

INLINED float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

INLINED float silu(float x) { return x / (1.0f + exponential(-x)); }

// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), by Abramowitz and Stegun 7.1.26: for z >= 0
// erfc(z) = t·(a₁ + a₂t + … + a₅t⁴)·exp(−z²), t = 1 / (1 + 0.3275911 z), with an error below 1.5e-7.
INLINED float gelu(float x) {
  const float magnitude = x < 0 ? -x : x;
  const float z = magnitude * 0.707106781f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * t * p * exponential(-z * z);
  return (x < 0 ? 0 : x) - magnitude * tail;
}

// 0.5·x·(1 + tanh(u)) = x / (1 + exp(−2u)), u = sqrt(2/π)·(x + 0.044715 x³).
INLINED float gelu_tanh(float x) {
  const float twice_u = 1.59576912f * x * (1.0f + 0.044715f * x * x);
  return x / (1.0f + exponential(-twice_u));
}

// The compiler reorders additions where it is told that it may, but not a comparison of floats: the lanes of
// a vector stand here by name.
enum { lanes = 32 };

INLINED float maximum(const float *x, ptrdiff_t count) {
  float partial[lanes];
  for (int lane = 0; lane < lanes; lane++) partial[lane] = -INFINITY;
  ptrdiff_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int lane = 0; lane < lanes; lane++)
      partial[lane] = x[i + lane] > partial[lane] ? x[i + lane] : partial[lane];
  float result = -INFINITY;
  for (int lane = 0; lane < lanes; lane++) result = partial[lane] > result ? partial[lane] : result;
  for (; i < count; i++) result = x[i] > result ? x[i] : result;
  return result;
}

// The order of these additions is the compiler's, and follows from the count alone.
INLINED float sum(const float *x, ptrdiff_t count) {
#pragma clang fp reassociate(on)
  float result = 0;
  for (ptrdiff_t i = 0; i < count; i++) result += x[i];
  return result;
}

// Σ (x − center)².
INLINED float sum_of_squares(const float *x, ptrdiff_t count, float center) {
#pragma clang fp reassociate(on)
  float result = 0;
  for (ptrdiff_t i = 0; i < count; i++) result += (x[i] - center) * (x[i] - center);
  return result;
}

QE_DISPATCH void qe_add(const float *x, float *y, ptrdiff_t count) {
  EACH_ELEMENT_ON_ITS_OWN
  for (ptrdiff_t i = 0; i < count; i++) y[i] += x[i];
}

void qe_fill_rows(const float *values, float *y, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t stride) {
  for (ptrdiff_t row = 0; row < rows; row++)
    memcpy(y + row * stride, values, (size_t)columns * sizeof(float));
}

// An activation function's two loops.
#define ACTIVATION(function)                                                                      \
  QE_DISPATCH void qe_##function(float *x, ptrdiff_t count) {                                  \
    for (ptrdiff_t i = 0; i < count; i++) x[i] = function(x[i]);                                  \
  }                                                                                               \
  QE_DISPATCH void qe_##function##_gate(float *gate, const float *up, ptrdiff_t count) {       \
    EACH_ELEMENT_ON_ITS_OWN                                                                       \
    for (ptrdiff_t i = 0; i < count; i++) gate[i] = function(gate[i]) * up[i];                    \
  }

ACTIVATION(relu)
ACTIVATION(silu)
ACTIVATION(gelu)
ACTIVATION(gelu_tanh)
ACTIVATION(relu_squared)
ACTIVATION(sigmoid)

QE_DISPATCH void qe_rms_norm(
    const float *x, float *y, ptrdiff_t rows, ptrdiff_t columns, const float *weight, float epsilon) {
  for (ptrdiff_t row = 0; row < rows; row++, x += columns, y += columns) {
    const float mean_square = sum_of_squares(x, columns, 0) / (float)columns;
    const float factor = 1.0f / sqrtf(mean_square + epsilon);
    EACH_ELEMENT_ON_ITS_OWN
    for (ptrdiff_t i = 0; i < columns; i++) y[i] = x[i] * factor * weight[i];
  }
}

QE_DISPATCH void qe_layer_norm(
    const float *x, float *y, ptrdiff_t rows, ptrdiff_t columns, const float *weight,
    const float *_Nullable bias, float epsilon) {
  for (ptrdiff_t row = 0; row < rows; row++, x += columns, y += columns) {
    const float mean = sum(x, columns) / (float)columns;
    const float variance = sum_of_squares(x, columns, mean) / (float)columns;
    const float factor = 1.0f / sqrtf(variance + epsilon);
    EACH_ELEMENT_ON_ITS_OWN
    for (ptrdiff_t i = 0; i < columns; i++) y[i] = (x[i] - mean) * factor * weight[i];
    if (bias) qe_add(bias, y, columns);
  }
}

QE_DISPATCH void qe_rotate_row(
    float *x, ptrdiff_t heads, ptrdiff_t head_dimension, ptrdiff_t pairs, int interleaved, const float *cosines,
    const float *sines) {
  for (ptrdiff_t head = 0; head < heads; head++, x += head_dimension) {
    if (interleaved) {
      EACH_ELEMENT_ON_ITS_OWN
      for (ptrdiff_t i = 0; i < pairs; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = b * cosines[i] + a * sines[i];
      }
      continue;
    }
    float *low = x, *high = x + pairs;
    EACH_ELEMENT_ON_ITS_OWN
    for (ptrdiff_t i = 0; i < pairs; i++) {
      const float a = low[i], b = high[i];
      low[i] = a * cosines[i] - b * sines[i];
      high[i] = b * cosines[i] + a * sines[i];
    }
  }
}

QE_DISPATCH void qe_scale(float *x, ptrdiff_t count, float factor) {
  for (ptrdiff_t i = 0; i < count; i++) x[i] *= factor;
}

// tanh(u) = ±(1 − e) / (1 + e), e = exp(−2|u|).
QE_DISPATCH void qe_softcap(float *x, ptrdiff_t count, float cap) {
  const float scale = 2.0f / cap;
  for (ptrdiff_t i = 0; i < count; i++) {
    const float magnitude = x[i] < 0 ? -x[i] : x[i];
    const float e = exponential(-magnitude * scale);
    const float capped = cap * (1.0f - e) / (1.0f + e);
    x[i] = x[i] < 0 ? -capped : capped;
  }
}

QE_DISPATCH void qe_clamp(float *x, ptrdiff_t count, float limit) {
  for (ptrdiff_t i = 0; i < count; i++) x[i] = x[i] < -limit ? -limit : x[i] > limit ? limit : x[i];
}

QE_DISPATCH void qe_xielu(float *x, ptrdiff_t count, float positive, float negative, float linear) {
  for (ptrdiff_t i = 0; i < count; i++) {
    const float below = x[i] < 0 ? x[i] : 0;
    const float bent =
        x[i] < 0 ? negative * (exponential(below) - 1.0f - below) : positive * x[i] * x[i];
    x[i] = bent + linear * x[i];
  }
}

QE_DISPATCH void qe_clamped_swiglu(
    float *gate, const float *up, ptrdiff_t count, float alpha, float limit) {
  for (ptrdiff_t i = 0; i < count; i++) {
    const float x = gate[i] > limit ? limit : gate[i];
    const float y = up[i] < -limit ? -limit : up[i] > limit ? limit : up[i];
    gate[i] = (y + 1.0f) * x / (1.0f + exponential(-alpha * x));
  }
}

// x ← exp(x − shift); returns the sum.
INLINED float exponentiate(float *x, ptrdiff_t count, float shift) {
  for (ptrdiff_t i = 0; i < count; i++) x[i] = exponential(x[i] - shift);
  return sum(x, count);
}

QE_DISPATCH void qe_causal_softmax(
    float *scores, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, ptrdiff_t first_count, ptrdiff_t window,
    float cap, const float *_Nullable bias, float sink) {
  for (ptrdiff_t row = 0; row < rows; row++, scores += stride) {
    const ptrdiff_t end = first_count + row;
    const ptrdiff_t start = end > window ? end - window : 0;
    const ptrdiff_t count = end - start;
    float *visible = scores + start;
    if (cap != 0) qe_softcap(visible, count, cap);
    if (bias) qe_add(bias + start, visible, count);
    const float largest = maximum(visible, count);
    const float shift = sink > largest ? sink : largest;
    const float total = exponentiate(visible, count, shift);
    const float factor = 1.0f / (sink == -INFINITY ? total : total + exponential(sink - shift));
    for (ptrdiff_t i = 0; i < count; i++) visible[i] *= factor;
    memset(scores, 0, (size_t)start * sizeof(float));
    memset(scores + end, 0, (size_t)(width - end) * sizeof(float));
  }
}

QE_DISPATCH void qe_causal_convolution(
    float *x, ptrdiff_t tokens, ptrdiff_t channels, ptrdiff_t stride, const float *weights, ptrdiff_t taps,
    float *scratch) {
  // The last rows as they were, in turns.
  memset(scratch, 0, (size_t)(taps * channels) * sizeof(float));
  for (ptrdiff_t token = 0; token < tokens; token++, x += stride) {
    memcpy(scratch + token % taps * channels, x, (size_t)channels * sizeof(float));
    memset(x, 0, (size_t)channels * sizeof(float));
    for (ptrdiff_t tap = 0; tap < taps; tap++) {
      const float *row = scratch + (token + 1 + tap) % taps * channels;
      const float *weight = weights + tap * channels;
      EACH_ELEMENT_ON_ITS_OWN
      for (ptrdiff_t i = 0; i < channels; i++) x[i] += weight[i] * row[i];
    }
    for (ptrdiff_t i = 0; i < channels; i++) x[i] = silu(x[i]);
  }
}

QE_DISPATCH void qe_gated_delta_rule(
    const float *queries, const float *keys, const float *values, ptrdiff_t stride, const float *decays,
    const float *betas, ptrdiff_t gate_stride, ptrdiff_t tokens, ptrdiff_t key_dimension, ptrdiff_t value_dimension,
    float *state, float *outputs, ptrdiff_t output_stride) {
  const float epsilon = 1e-6f;
  float *change = state + key_dimension * value_dimension;
  memset(state, 0, (size_t)(key_dimension * value_dimension) * sizeof(float));
  for (ptrdiff_t token = 0; token < tokens; token++) {
    const float *q = queries + token * stride, *k = keys + token * stride, *v = values + token * stride;
    const float decay = decays[token * gate_stride], beta = betas[token * gate_stride];
    const float q_scale =
        1.0f / sqrtf(sum_of_squares(q, key_dimension, 0) + epsilon) / sqrtf((float)key_dimension);
    const float k_scale = 1.0f / sqrtf(sum_of_squares(k, key_dimension, 0) + epsilon);
    memset(change, 0, (size_t)value_dimension * sizeof(float));
    for (ptrdiff_t row = 0; row < key_dimension; row++) {
      float *s = state + row * value_dimension;
      const float factor = k[row] * k_scale;
      EACH_ELEMENT_ON_ITS_OWN
      for (ptrdiff_t i = 0; i < value_dimension; i++) {
        s[i] *= decay;
        change[i] += factor * s[i];
      }
    }
    float *output = outputs + token * output_stride;
    memset(output, 0, (size_t)value_dimension * sizeof(float));
    EACH_ELEMENT_ON_ITS_OWN
    for (ptrdiff_t i = 0; i < value_dimension; i++) change[i] = beta * (v[i] - change[i]);
    for (ptrdiff_t row = 0; row < key_dimension; row++) {
      float *s = state + row * value_dimension;
      const float k_factor = k[row] * k_scale, q_factor = q[row] * q_scale;
      EACH_ELEMENT_ON_ITS_OWN
      for (ptrdiff_t i = 0; i < value_dimension; i++) {
        s[i] += k_factor * change[i];
        output[i] += q_factor * s[i];
      }
    }
  }
}

QE_DISPATCH float qe_log_sum_exp(const float *x, ptrdiff_t count) {
  // fp32 sums of short stretches, added up in fp64: a vocabulary has 1e5 terms and more.
  enum { stretch = 1024 };
  const float shift = maximum(x, count);
  double total = 0;
  float exponentials[stretch];
  for (ptrdiff_t start = 0; start < count; start += stretch) {
    const ptrdiff_t length = count - start < stretch ? count - start : stretch;
    for (ptrdiff_t i = 0; i < length; i++) exponentials[i] = exponential(x[start + i] - shift);
    total += (double)sum(exponentials, length);
  }
  return shift + (float)log(total);
}

// exp(p) · (exp(−d) − 1 + d), d = p − q
INLINED float divergence_term(float p, float q) {
  const float d = p - q, weight = exponential(p);
  // Near zero the difference would be all that is left of three terms; far from it exp(−d) would have no end.
  const float series =
      d * d * (0.5f + d * (-1.0f / 6 + d * (1.0f / 24 + d * (-1.0f / 120 + d * (1.0f / 720)))));
  const float direct = exponential(q) - weight + weight * d;
  return fabsf(d) < 0.25f ? weight * series : direct;
}

QE_DISPATCH float qe_divergence(
    const float *reference, float reference_log_sum, const float *x, float log_sum, ptrdiff_t count) {
  // Σ p log(p/q) with d = log(p/q) is Σ p (exp(−d) − 1 + d), as Σ q = Σ p: no term is below zero, so that nothing cancels
  // where the two are nearly alike, and what the log sums are off by counts by its square.
  enum { stretch = 1024 };
  double total = 0;
  float terms[stretch];
  for (ptrdiff_t start = 0; start < count; start += stretch) {
    const ptrdiff_t length = count - start < stretch ? count - start : stretch;
    for (ptrdiff_t i = 0; i < length; i++) {
      const float p = reference[start + i] - reference_log_sum, q = x[start + i] - log_sum;
      terms[i] = divergence_term(p, q);
    }
    total += (double)sum(terms, length);
  }
  return (float)total;
}

QE_DISPATCH ptrdiff_t qe_index_of_maximum(const float *x, ptrdiff_t count) {
  const float largest = maximum(x, count);
  for (ptrdiff_t i = 0; i < count; i++)
    if (x[i] == largest) return i;
  return 0;
}

int qe_x86_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 3;
  return __builtin_cpu_supports("avx") ? 2 : 1;
#else
  return 0;
#endif
}

int qe_is_amd(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") != 0;
#else
  return 0;
#endif
}
