// Sums that run backwards over packed, ragged segments. Each operation is one of the torch twin's, in its order, and the
// build forbids fused multiply-adds, so the results are those of the twin to the bit.

#include <cstdint>

namespace {

// x_t = y_t + d_t x_{t+1}, from the segment's last decision to its first.
void accumulate_segment(const float *term, const float *decay, float *total, int64_t length) {
  float carried = 0.0f;
  for (int64_t t = length - 1; t >= 0; --t) {
    carried = term[t] + decay[t] * carried;
    total[t] = carried;
  }
}

void gae_segment(const float *reward, const float *value, float next_value, float discount, float decay,
                 float *advantage, int64_t length) {
  float carried = 0.0f;
  for (int64_t t = length - 1; t >= 0; --t) {
    const float delta = reward[t] + discount * next_value - value[t];
    carried = delta + decay * carried;
    advantage[t] = carried;
    next_value = value[t];
  }
}

}  // namespace

extern "C" {

// starts: segments + 1 offsets of the packed decisions.
void accumulate_backwards(const float *term, const float *decay, const int64_t *starts, int64_t segments, float *total,
                          int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t s = 0; s < segments; ++s)
    accumulate_segment(term + starts[s], decay + starts[s], total + starts[s], starts[s + 1] - starts[s]);
}

void gae(const float *reward, const float *value, const float *bootstrap, const bool *terminal, const int64_t *starts,
         int64_t segments, float discount, float decay, float *advantage, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t first = starts[s];
    gae_segment(reward + first, value + first, terminal[s] ? 0.0f : bootstrap[s], discount, decay, advantage + first,
                starts[s + 1] - first);
  }
}

}  // extern "C"
