// Causal attention: the products are cuBLAS's, what lies between them is here.

// Probabilities `[heads, length, stride]` of scores `[heads, length, length]`, one block a query, in fp32, where they may
// stand in the scores' place, or as bfloat16.
//
// Query q sees keys from q − window + 1 on, up to itself; other probabilities become 0. `sinks`, one a head, count for the
// sum alone.
KERNEL(ROW_THREADS, causal_softmax,
       (const float *scores, float *probabilities, bfloat16 *rounded, i64 length, i64 stride, i64 window,
        float cap, const float *position_bias, const float *sinks, i64 first_head)) {
  __shared__ float scratch[32];
  const i64 query = blockIdx.x, head = blockIdx.y;
  const i64 row = (head * length + query) * length;
  const i64 first = query + 1 > window ? query + 1 - window : 0;
  const float *bias = position_bias ? position_bias + (first_head + head) * length : nullptr;
  float largest = sinks ? sinks[first_head + head] : -INFINITY;
  for (i64 key = first + threadIdx.x; key <= query; key += blockDim.x) {
    float score = scores[row + key];
    if (cap != 0.0f) score = cap * tanhf(score / cap);
    if (bias) score += bias[key];
    largest = fmaxf(largest, score);
  }
  largest = block_maximum(largest, scratch);
  float sum = 0.0f;
  for (i64 key = first + threadIdx.x; key <= query; key += blockDim.x) {
    float score = scores[row + key];
    if (cap != 0.0f) score = cap * tanhf(score / cap);
    if (bias) score += bias[key];
    sum += expf(score - largest);
  }
  sum = block_sum(sum, scratch);
  if (sinks) sum += expf(sinks[first_head + head] - largest);
  const float factor = 1.0f / sum;
  const i64 to = (head * length + query) * stride;
  for (i64 key = threadIdx.x; key < stride; key += blockDim.x) {
    float probability = 0.0f;
    if (key >= first && key <= query) {
      float score = scores[row + key];
      if (cap != 0.0f) score = cap * tanhf(score / cap);
      if (bias) score += bias[key];
      probability = expf(score - largest) * factor;
    }
    if (rounded) {
      rounded[to + key] = to_bfloat16(probability);
    } else {
      probabilities[to + key] = probability;
    }
  }
}

// Linear attention: a causal convolution over every channel, with silu.
KERNEL(256, causal_convolution,
       (float *y, const float *x, const float *weights, i64 taps, i64 channels, i64 length, i64 count)) {
  FOR_EACH(index, count) {
    const i64 channel = index % channels, token = index / channels, position = token % length;
    float sum = 0.0f;
    for (i64 tap = position + 1 >= taps ? 0 : taps - 1 - position; tap < taps; tap++)
      sum = fmaf(weights[tap * channels + channel], x[(token - taps + 1 + tap) * channels + channel], sum);
    y[index] = sum / (1.0f + expf(-sum));
  }
}

#define MOST_KEY_FEATURES 256

// The gated delta rule: one block a sequence and head, a thread a value feature, its column of S in `state`,
// `[sequences, heads, keys, values]`, zeros at first.
KERNEL(256, gated_delta_rule,
       (float *outputs, const float *mixed, const float *decays, const float *gates, const float *decay_logarithms,
        const float *decay_biases, float *state, i64 key_heads, i64 value_heads, i64 key_dimension,
        i64 value_dimension, i64 length, int are_tiled)) {
  __shared__ float scratch[32];
  __shared__ float query[MOST_KEY_FEATURES], key[MOST_KEY_FEATURES];
  const i64 head = blockIdx.x, sequence = blockIdx.y;
  const i64 key_head = are_tiled ? head % key_heads : head / (value_heads / key_heads);
  const i64 key_features = key_heads * key_dimension;
  const i64 width = 2 * key_features + value_heads * value_dimension;
  state += (sequence * value_heads + head) * key_dimension * value_dimension;
  for (i64 token = sequence * length; token < (sequence + 1) * length; token++) {
    const float *x = mixed + token * width;
    float query_squares = 0.0f, key_squares = 0.0f;
    for (i64 index = threadIdx.x; index < key_dimension; index += blockDim.x) {
      query[index] = x[key_head * key_dimension + index];
      key[index] = x[key_features + key_head * key_dimension + index];
      query_squares = fmaf(query[index], query[index], query_squares);
      key_squares = fmaf(key[index], key[index], key_squares);
    }
    query_squares = block_sum(query_squares, scratch);
    __syncthreads();
    key_squares = block_sum(key_squares, scratch);
    const float query_factor = 1.0f / (sqrtf(query_squares + 1e-6f) * sqrtf((float)key_dimension));
    const float key_factor = 1.0f / sqrtf(key_squares + 1e-6f);
    for (i64 index = threadIdx.x; index < key_dimension; index += blockDim.x) {
      query[index] *= query_factor;
      key[index] *= key_factor;
    }
    __syncthreads();
    const float raw = decays[token * value_heads + head] + decay_biases[head];
    const float softplus = raw > 20.0f ? raw : log1pf(expf(raw));
    const float decay = expf(-expf(decay_logarithms[head]) * softplus);
    const float beta = 1.0f / (1.0f + expf(-gates[token * value_heads + head]));
    for (i64 value = threadIdx.x; value < value_dimension; value += blockDim.x) {
      float known = 0.0f;
      for (i64 index = 0; index < key_dimension; index++)
        known = fmaf(key[index], decay * state[index * value_dimension + value], known);
      const float change = beta * (x[2 * key_features + head * value_dimension + value] - known);
      float sum = 0.0f;
      for (i64 index = 0; index < key_dimension; index++) {
        const float next = fmaf(key[index], change, decay * state[index * value_dimension + value]);
        state[index * value_dimension + value] = next;
        sum = fmaf(query[index], next, sum);
      }
      outputs[(token * value_heads + head) * value_dimension + value] = sum;
    }
    __syncthreads();
  }
}
