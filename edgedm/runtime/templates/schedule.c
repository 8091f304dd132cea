/* Timesteps and steps of DDIM and DDPM.
 *
 * The formulas are those of edgedm/diffusion (noise_schedule.py, sampler.py), in the same order, with + - * / and
 * sqrt in double and without fused multiply-adds: both give the same bits. */
#include <math.h>

#include "runtime.h"

/* Round to the nearest integer, ties to even, of a value in 0..2^31. */
static int64_t round_half_even(double value) {
  int64_t below = (int64_t)value;
  double rest = value - (double)below;
  if (rest > 0.5 || (rest == 0.5 && below % 2)) return below + 1;
  return below;
}

edm_status edm_choose_timesteps(const edm_noise_schedule *noise, int steps, int64_t *timesteps) {
  double train = noise->train_timesteps;
  for (int i = 0; i < steps; ++i) {
    if (noise->spacing == EDM_LEADING) {
      timesteps[i] = (int64_t)(steps - 1 - i) * (noise->train_timesteps / steps) + noise->steps_offset;
    } else if (noise->spacing == EDM_TRAILING) {
      double stride = train - (train - train / steps); /* numpy.arange's own */
      timesteps[i] = round_half_even(train - i * stride) - 1;
    } else {
      double stride = steps > 1 ? (train - 1.0) / (steps - 1) : 0.0;
      timesteps[i] = round_half_even((steps - 1 - i) * stride);
    }
  }
  return EDM_OK;
}

static double larger(double a, double b) { return a > b ? a : b; }

static void predict(const edm_noise_schedule *noise, double now, edm_coefficients *row) {
  double level = sqrt(now), deviation = sqrt(1.0 - now);
  double x0_sample = 0.0, x0_output = 1.0, eps_sample = 0.0, eps_output = 1.0;
  if (noise->prediction == EDM_EPSILON) {
    x0_sample = 1.0 / level, x0_output = -(deviation / level);
  } else if (noise->prediction == EDM_V_PREDICTION) {
    x0_sample = level, x0_output = -deviation, eps_sample = deviation, eps_output = level;
  } else {
    eps_sample = 1.0 / deviation, eps_output = -(level / deviation);
  }
  row->x0_sample = (float)x0_sample, row->x0_output = (float)x0_output;
  row->eps_sample = (float)eps_sample, row->eps_output = (float)eps_output;
}

static void ddim(double now, double before, double eta, edm_coefficients *row) {
  double variance = (1.0 - before) / (1.0 - now) * (1.0 - now / before);
  double deviation = eta * sqrt(larger(variance, 0.0));
  double direction = larger(1.0 - before - deviation * deviation, 0.0);
  row->to_x0 = (float)sqrt(before), row->to_eps = (float)sqrt(direction);
  row->to_sample = 0.0F, row->to_noise = (float)deviation;
}

static void ddpm(double now, double before, bool large_variance, bool fresh, edm_coefficients *row) {
  double alpha = now / before;
  double beta = 1.0 - alpha;
  double left = 1.0 - before;
  double variance = large_variance ? beta : larger(left / (1.0 - now) * beta, 1e-20);
  row->to_x0 = (float)(sqrt(before) * beta / (1.0 - now)), row->to_eps = 0.0F;
  row->to_sample = (float)(sqrt(alpha) * left / (1.0 - now));
  row->to_noise = fresh ? (float)sqrt(variance) : 0.0F;
}

void edm_step_coefficients(const edm_noise_schedule *noise, const edm_schedule *schedule, const int64_t *timesteps,
                           edm_coefficients *rows) {
  for (int step = 0; step < schedule->steps; ++step) {
    double now = noise->alphas_cumprod[timesteps[step]];
    bool last = step + 1 == schedule->steps;
    predict(noise, now, &rows[step]);
    if (schedule->sampler == EDM_DDPM) {
      double before = last ? 1.0 : noise->alphas_cumprod[timesteps[step + 1]];
      ddpm(now, before, noise->large_variance, timesteps[step] > 0, &rows[step]);
    } else {
      int64_t previous = timesteps[step] - noise->train_timesteps / schedule->steps;
      if (schedule->timesteps) previous = last ? -1 : timesteps[step + 1];
      double end = noise->alpha_to_one ? 1.0 : noise->alphas_cumprod[0];
      ddim(now, previous >= 0 ? noise->alphas_cumprod[previous] : end, schedule->eta, &rows[step]);
    }
  }
}

void edm_advance(const edm_coefficients *row, float clip, const float *output, const float *fresh, uint64_t count,
                 float *x) {
  edm_coefficients c = *row;
  for (uint64_t i = 0; i < count; ++i) {
    float x0 = c.x0_sample * x[i] + c.x0_output * output[i];
    if (clip > 0.0F) x0 = x0 < -clip ? -clip : x0 > clip ? clip : x0;
    float eps = c.eps_sample * x[i] + c.eps_output * output[i];
    x[i] = (c.to_x0 * x0 + c.to_eps * eps) + c.to_sample * x[i];
  }
  if (!fresh) return;
  for (uint64_t i = 0; i < count; ++i) x[i] = x[i] + c.to_noise * fresh[i];
}

void edm_guide(const float *conditional, const float *unconditional, float guidance, uint64_t count, float *output) {
  for (uint64_t i = 0; i < count; ++i)
    output[i] = unconditional[i] + guidance * (conditional[i] - unconditional[i]);
}
