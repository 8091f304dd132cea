/* Which timesteps a run visits: see edgedm/diffusion/noise_schedule.py, whose arithmetic this is, in the same order. */
#include "runtime.h"

/* Round to the nearest integer, ties to even, of a value in 0..2^31. */
static int64_t round_half_even(double value) {
  int64_t below = (int64_t)value;
  double rest = value - (double)below;
  if (rest > 0.5 || (rest == 0.5 && below % 2)) return below + 1;
  return below;
}

void edm_choose_timesteps(const edm_noise_schedule *noise, edm_sampler sampler, int steps, int64_t *timesteps) {
  bool solver = sampler == EDM_DPM_SOLVER_PP;
  int32_t used = solver ? noise->solver_timesteps : noise->train_timesteps;
  int intervals = solver ? steps + 1 : steps; /* DPM-Solver++ leaves the timestep of the end out */
  for (int i = 0; i < steps; ++i) {
    int64_t upwards = steps - 1 - i + (solver ? 1 : 0);
    if (noise->spacing == EDM_LEADING) {
      timesteps[i] = upwards * (used / intervals) + noise->steps_offset;
    } else if (noise->spacing == EDM_TRAILING) {
      double end = used, stride = end - (end - (double)noise->train_timesteps / steps); /* numpy.arange's own */
      timesteps[i] = round_half_even(end - i * stride) - 1;
    } else {
      double stride = intervals > 1 ? (used - 1.0) / (intervals - 1) : 0.0;
      timesteps[i] = round_half_even((double)upwards * stride);
    }
  }
}
