// Rows of logits to log-probability and entropy of a chosen bin, and back to the gradient of the logits, in place: one
// pass over a row each, while it is in the cache.

#include <cmath>
#include <cstdint>

namespace {

constexpr float LOG2_E = 1.44269504f;
constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;  // their sum is ln 2
constexpr float SMALLEST = -87.3f;                                   // exp of it is the smallest normal number

// exp(x) for x <= 0, within 2 units in the last place: 2^n times a polynomial (Cephes) on [-ln2/2, ln2/2]. Without
// branches, so that the compiler makes vectors of it.
inline float exponential(float x) {
  const float bounded = x < SMALLEST ? SMALLEST : x;
  const float n = std::floor(bounded * LOG2_E + 0.5f);
  const float r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

inline double exponential(double x) { return std::exp(x); }

template <typename T>
void forward_row(const T *logits, int64_t bins, int64_t token, T *log_prob, T *entropy, T *log_normalizer) {
  T highest = logits[0];
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < bins; ++j) highest = logits[j] > highest ? logits[j] : highest;
  T sum = 0, weighted = 0;
#pragma omp simd reduction(+ : sum, weighted)
  for (int64_t j = 0; j < bins; ++j) {
    const T below = logits[j] - highest;
    const T share = exponential(below);
    sum += share;
    weighted += share * below;
  }
  const T log_sum = std::log(sum);
  *log_normalizer = highest + log_sum;
  *entropy = log_sum - weighted / sum;
  *log_prob = (logits[token] - highest) - log_sum;
}

// d log p_token / d z_j = [j = token] - p_j  and  d H / d z_j = -p_j (log p_j + H)
template <typename T>
void backward_row(T *logits, int64_t bins, int64_t token, T grad_log_prob, T grad_entropy, T entropy,
                  T log_normalizer) {
#pragma omp simd
  for (int64_t j = 0; j < bins; ++j) {
    const T log_p = logits[j] - log_normalizer;
    logits[j] = -exponential(log_p) * (grad_log_prob + grad_entropy * (log_p + entropy));
  }
  logits[token] += grad_log_prob;
}

template <typename T>
void forward_rows(const T *logits, const int64_t *tokens, int64_t rows, int64_t bins, T *log_prob, T *entropy,
                  T *log_normalizer, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i)
    forward_row(logits + i * bins, bins, tokens[i], log_prob + i, entropy + i, log_normalizer + i);
}

template <typename T>
void backward_rows(T *logits, const int64_t *tokens, int64_t rows, int64_t bins, const T *grad_log_prob,
                   const T *grad_entropy, const T *entropy, const T *log_normalizer, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i)
    backward_row(logits + i * bins, bins, tokens[i], grad_log_prob[i], grad_entropy[i], entropy[i], log_normalizer[i]);
}

}  // namespace

extern "C" {

#define SLIM_LOG_PROB(name, T)                                                                                        \
  void slim_forward_##name(const T *logits, const int64_t *tokens, int64_t rows, int64_t bins, T *log_prob,           \
                           T *entropy, T *log_normalizer, int64_t threads) {                                              \
    forward_rows(logits, tokens, rows, bins, log_prob, entropy, log_normalizer, threads);                             \
  }                                                                                                                   \
  void slim_backward_##name(T *logits, const int64_t *tokens, int64_t rows, int64_t bins, const T *grad_log_prob,     \
                            const T *grad_entropy, const T *entropy, const T *log_normalizer, int64_t threads) {          \
    backward_rows(logits, tokens, rows, bins, grad_log_prob, grad_entropy, entropy, log_normalizer, threads);         \
  }

SLIM_LOG_PROB(float32, float)
SLIM_LOG_PROB(float64, double)

}  // extern "C"
