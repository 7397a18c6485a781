#ifndef QUANTEASE_ELEMENTWISE_H
#define QUANTEASE_ELEMENTWISE_H

#include <stddef.h>

// Loops over rows and elements of row-major fp32 matrices, single-threaded.
//
// A result depends on the values and shapes of one call alone, so a caller may cut a matrix into rows and
// hand them out to threads in any order. Where an operation has an input and an output, both may be the
// same memory; other overlaps are not allowed.

#pragma clang assume_nonnull begin

/// y ← y + x.
void qe_add(const float *x, float *y, ptrdiff_t count);

/// Writes `values` to every one of `rows` rows, `stride` elements apart.
void qe_fill_rows(const float *values, float *y, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t stride);

// Activation functions, in place: x ← f(x), or gate ← f(gate) · up.
// Absolute errors stay below 1e-6 · max(1, |x|).

void qe_relu(float *x, ptrdiff_t count);
void qe_silu(float *x, ptrdiff_t count);
void qe_gelu(float *x, ptrdiff_t count);
void qe_gelu_tanh(float *x, ptrdiff_t count);
void qe_relu_squared(float *x, ptrdiff_t count);
void qe_sigmoid(float *x, ptrdiff_t count);
void qe_relu_gate(float *gate, const float *up, ptrdiff_t count);
void qe_silu_gate(float *gate, const float *up, ptrdiff_t count);
void qe_gelu_gate(float *gate, const float *up, ptrdiff_t count);
void qe_gelu_tanh_gate(float *gate, const float *up, ptrdiff_t count);
void qe_relu_squared_gate(float *gate, const float *up, ptrdiff_t count);
void qe_sigmoid_gate(float *gate, const float *up, ptrdiff_t count);

/// y = weight · x / sqrt(mean(x²) + epsilon), row by row.
void qe_rms_norm(
    const float *x, float *y, ptrdiff_t rows, ptrdiff_t columns, const float *weight, float epsilon);

/// y = weight · (x − mean(x)) / sqrt(var(x) + epsilon) + bias, row by row.
void qe_layer_norm(
    const float *x, float *y, ptrdiff_t rows, ptrdiff_t columns, const float *weight,
    const float *_Nullable bias, float epsilon);

/// x ← factor · x.
void qe_scale(float *x, ptrdiff_t count, float factor);

/// x ← cap · tanh(x / cap), with an absolute error below 1e-6 · cap.
void qe_softcap(float *x, ptrdiff_t count, float cap);

/// x ← x moved to between −limit and limit.
void qe_clamp(float *x, ptrdiff_t count, float limit);

/// x ← positive · x² + linear · x where x > 0, and negative · (exp(x) − 1 − x) + linear · x elsewhere.
void qe_xielu(float *x, ptrdiff_t count, float positive, float negative, float linear);

/// gate ← (y + 1) · x / (1 + exp(−alpha · x)) for x = min(gate, limit) and y = up moved to between −limit and limit.
void qe_clamped_swiglu(float *gate, const float *up, ptrdiff_t count, float alpha, float limit);

/// Turns the first `2 · pairs` elements of every head of one row by the angles of its position: the pairs (i, i + pairs),
/// or, `interleaved`, (2i, 2i + 1).
/// - cosines, sines: `pairs` values
void qe_rotate_row(
    float *x, ptrdiff_t heads, ptrdiff_t head_dimension, ptrdiff_t pairs, int interleaved, const float *cosines,
    const float *sines);

/// Softmax over a part of every row: row r has scores up to its `first_count + r`th, of which the last `window` count;
/// the rest, up to `width`, becomes 0. The scores are capped as by qe_softcap if `cap` is not 0, and then `bias`, `width`
/// values, is added. `sink` is one more score, whose probability nobody gets; −∞ for none.
void qe_causal_softmax(
    float *scores, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, ptrdiff_t first_count, ptrdiff_t window,
    float cap, const float *_Nullable bias, float sink);

/// y ← silu(Σ_i weights[i] · x[t − taps + 1 + i]) for every token t of one sequence and every channel, in place; what is
/// before the first token is 0.
/// - x: `tokens` rows of `channels`, `stride` elements apart
/// - weights: `taps` rows of `channels`
/// - scratch: `taps · channels` values
void qe_causal_convolution(
    float *x, ptrdiff_t tokens, ptrdiff_t channels, ptrdiff_t stride, const float *weights, ptrdiff_t taps,
    float *scratch);

/// The gated delta rule over one sequence and head: S ← decay · S; S += k ⊗ beta (v − kᵀS); out = qᵀS.
/// - queries, keys: `key_dimension` values a token, not normalised; values, outputs: `value_dimension`
/// - decays, betas: a value a token, `gate_stride` elements apart
/// - state: S, `key_dimension` rows of `value_dimension`, and a row more for scratch
void qe_gated_delta_rule(
    const float *queries, const float *keys, const float *values, ptrdiff_t stride, const float *decays,
    const float *betas, ptrdiff_t gate_stride, ptrdiff_t tokens, ptrdiff_t key_dimension, ptrdiff_t value_dimension,
    float *state, float *outputs, ptrdiff_t output_stride);

/// log Σ exp(x).
float qe_log_sum_exp(const float *x, ptrdiff_t count);

/// The Kullback-Leibler divergence of softmax(x) from softmax(reference), given the log Σ exp of both.
float qe_divergence(
    const float *reference, float reference_log_sum, const float *x, float log_sum, ptrdiff_t count);

/// The first place of the largest value; 0 where there is no number.
ptrdiff_t qe_index_of_maximum(const float *x, ptrdiff_t count);

// What this processor and its operating system have of x86-64: 4 for AVX-512, 3 for AVX2, 2 for AVX, 1 for less; 0 on
// another architecture.
int qe_x86_level(void);

// Whether AMD made this processor.
int qe_is_amd(void);

#pragma clang assume_nonnull end

#endif
