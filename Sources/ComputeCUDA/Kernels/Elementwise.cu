// One thread an element.

KERNEL(256, add, (float *y, const float *x, float factor, i64 count)) {
  FOR_EACH(index, count) y[index] = fmaf(factor, x[index], y[index]);
}

KERNEL(256, scale, (float *x, float factor, i64 count)) {
  FOR_EACH(index, count) x[index] *= factor;
}

KERNEL(256, softcap, (float *x, float cap, i64 count)) {
  FOR_EACH(index, count) x[index] = cap * tanhf(x[index] / cap);
}

KERNEL(256, clamp, (float *x, float limit, i64 count)) {
  FOR_EACH(index, count) x[index] = fminf(fmaxf(x[index], -limit), limit);
}

// y ← y + b in every row.
KERNEL(256, add_bias, (float *y, const float *bias, i64 columns, i64 count)) {
  FOR_EACH(index, count) y[index] += bias[index % columns];
}

// Functions by the numbers that the backend has for them.
__device__ __forceinline__ float activated(float x, int function) {
  switch (function) {
    case 0: return fmaxf(x, 0.0f);
    case 1: return x / (1.0f + expf(-x));
    case 2: return 0.5f * x * erfcf(-0.70710678118654752f * x);
    case 3: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case 4: {
      const float positive = fmaxf(x, 0.0f);
      return positive * positive;
    }
    default: return 1.0f / (1.0f + expf(-x));
  }
}

KERNEL(256, activate, (float *x, int function, i64 count)) {
  FOR_EACH(index, count) x[index] = activated(x[index], function);
}

// gate ← function(gate) · up
KERNEL(256, activate_gate, (float *gate, const float *up, int function, i64 count)) {
  FOR_EACH(index, count) gate[index] = activated(gate[index], function) * up[index];
}

// gate ← (y + 1) · x · σ(αx)
KERNEL(256, clamped_swiglu, (float *gate, const float *up, float alpha, float limit, i64 count)) {
  FOR_EACH(index, count) {
    const float x = fminf(gate[index], limit);
    const float y = fminf(fmaxf(up[index], -limit), limit);
    gate[index] = (y + 1.0f) * x / (1.0f + expf(-alpha * x));
  }
}

KERNEL(256, xielu, (float *x, float positive, float negative, float linear, i64 count)) {
  FOR_EACH(index, count) {
    const float value = x[index];
    const float bent = value > 0.0f ? positive * value * value : negative * (expm1f(value) - value);
    x[index] = fmaf(linear, value, bent);
  }
}

// Rows of fp32 to bfloat16, times a factor; what is behind a row's last element, up to `stride`, is zero.
KERNEL(256, to_bfloat16_rows,
       (bfloat16 *y, const float *x, float factor, i64 columns, i64 stride, i64 rows)) {
  FOR_EACH(index, rows * stride) {
    const i64 column = index % stride;
    y[index] = column < columns ? to_bfloat16(factor * x[index / stride * columns + column]) : 0;
  }
}

// Codes as bytes, and back.
KERNEL(256, to_bytes, (unsigned char *y, const float *x, i64 count)) {
  FOR_EACH(index, count) y[index] = (unsigned char)x[index];
}

KERNEL(256, from_bytes, (float *y, const unsigned char *x, i64 count)) {
  FOR_EACH(index, count) y[index] = (float)x[index];
}

// A part of every head of every row.
KERNEL(256, set_heads,
       (float *states, const float *source, i64 heads, i64 head_dimension, i64 first, i64 width, int shared, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index % width, head = index / width % heads, token = index / (width * heads);
    const i64 from = shared ? token * width + place : index;
    states[(token * heads + head) * head_dimension + first + place] = source[from];
  }
}

// Rotary position embedding; a thread turns one pair.
KERNEL(256, rotate,
       (float *states, const float *cosines, const float *sines, i64 heads, i64 head_dimension, i64 pairs, i64 length,
        int interleaved, i64 count)) {
  FOR_EACH(index, count) {
    const i64 pair = index % pairs, head = index / pairs % heads, token = index / (pairs * heads);
    float *x = states + (token * heads + head) * head_dimension;
    const i64 one = interleaved ? 2 * pair : pair, other = interleaved ? 2 * pair + 1 : pairs + pair;
    const float cosine = cosines[token % length * pairs + pair], sine = sines[token % length * pairs + pair];
    const float low = x[one], high = x[other];
    x[one] = low * cosine - high * sine;
    x[other] = high * cosine + low * sine;
  }
}

// The nearest value of float16, ties to even; those beyond its range become infinite.
__device__ __forceinline__ unsigned short to_float16(float value) {
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
  const float magnitude = fabsf(value);
  if (!(magnitude < 65520.0f)) return (unsigned short)(sign | (magnitude != magnitude ? 0x7E00u : 0x7C00u));
  if (magnitude < 6.103515625e-05f) {
    // Below the normal numbers steps are of one size, 2⁻²⁴: what is added leaves their count in the last bits.
    return (unsigned short)(sign | (__float_as_uint(magnitude + 0.5f) - 0x3F000000u));
  }
  const unsigned rounded = (bits & 0x7FFFFFFFu) + 0xFFFu + (bits >> 13 & 1u);
  return (unsigned short)(sign | ((rounded - 0x38000000u) >> 13));
}

__device__ __forceinline__ float from_float16(unsigned short half) {
  const unsigned sign = (unsigned)(half & 0x8000u) << 16, rest = half & 0x7FFFu;
  if (rest >= 0x7C00u) return __uint_as_float(sign | 0x7F800000u | ((rest & 0x3FFu) << 13));
  if (rest < 0x400u) return __uint_as_float(__float_as_uint((float)rest * 5.9604644775390625e-08f) | sign);
  return __uint_as_float(sign | ((rest << 13) + 0x38000000u));
}

// States as they are kept between two stages, and back: fp32 (0), float16 (1) or bfloat16 (2). They are rounded in place;
// one that has no finite value of the type is told in `unsound`.
KERNEL(256, keep_states, (void *kept, float *x, int type, int *unsound, i64 count)) {
  FOR_EACH(index, count) {
    float value = x[index];
    if (type == 0) {
      ((float *)kept)[index] = value;
    } else if (type == 1) {
      const unsigned short half = to_float16(value);
      ((unsigned short *)kept)[index] = half;
      value = (half & 0x7FFFu) < 0x7C00u ? from_float16(half) : INFINITY;
    } else {
      const bfloat16 half = to_bfloat16(value);
      ((bfloat16 *)kept)[index] = half;
      value = from_bfloat16(half);
    }
    if (!(fabsf(value) <= 3.4028235e38f)) {
      *unsound = 1;
    } else {
      x[index] = value;
    }
  }
}

KERNEL(256, convert_stored, (float *x, const void *kept, int type, i64 count)) {
  FOR_EACH(index, count)
  x[index] = type == 0   ? ((const float *)kept)[index]
             : type == 1 ? from_float16(((const unsigned short *)kept)[index])
                         : from_bfloat16(((const bfloat16 *)kept)[index]);
}

KERNEL(256, find_unsound, (const float *x, int *unsound, i64 count)) {
  FOR_EACH(index, count) {
    if (!(fabsf(x[index]) <= 3.4028235e38f)) *unsound = 1;
  }
}
