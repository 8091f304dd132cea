/* One step of DDIM, DDPM or DPM-Solver++ 2M.
 *
 * The formulas are those of edgedm/diffusion/steps.py, in the same order, with + - * / and sqrt alone and without
 * fused multiply-adds: both give the same bits. */
#include <math.h>
#include <string.h>

#include "runtime.h"

enum { FEW_STEPS = 15 }; /* below this lower_order_final counts */

static float larger(float a, float b) { return a > b ? a : b; }

/* log(value) of a normal positive double: edgedm/diffusion/logarithm.py says how. */
static double natural_log(double value) {
  enum { TERMS = 12, MANTISSA_BITS = 52, BIAS = 1023 };
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  int exponent = (int)(bits >> MANTISSA_BITS) - BIAS;
  bits = (bits & (((uint64_t)1 << MANTISSA_BITS) - 1)) | (uint64_t)BIAS << MANTISSA_BITS;
  double mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  if (mantissa > 1.4142135623730951) mantissa /= 2.0, ++exponent;
  double ratio = (mantissa - 1.0) / (mantissa + 1.0);
  double square = ratio * ratio, total = 0.0;
  for (int term = TERMS - 1; term >= 0; --term) total = total * square + 1.0 / (2 * term + 1);
  return exponent * 0.6931471805599453 + 2.0 * ratio * total;
}

/* e^value for a value within -700..700, from the same file. */
static double natural_exp(double value) {
  enum { POWERS = 13, MANTISSA_BITS = 52, BIAS = 1023 };
  double halvings = value * 1.4426950408889634;
  int exponent = (int)(halvings < 0.0 ? halvings - 0.5 : halvings + 0.5);
  double rest = value - exponent * 0.6931471805599453, total = 1.0, scale;
  for (int power = POWERS; power > 0; --power) total = 1.0 + rest / power * total;
  uint64_t bits = (uint64_t)(exponent + BIAS) << MANTISSA_BITS;
  memcpy(&scale, &bits, sizeof scale);
  return total * scale;
}

/* --- coefficients ---------------------------------------------------------------------------------------- */

static void predict(edm_prediction kind, float level, float deviation, edm_coefficients *row) {
  row->x0_divisor = row->eps_divisor = 1.0F;
  if (kind == EDM_EPSILON) {
    row->x0_sample = 1.0F, row->x0_output = -deviation, row->x0_divisor = level;
    row->eps_output = 1.0F;
  } else if (kind == EDM_V_PREDICTION) {
    row->x0_sample = level, row->x0_output = -deviation;
    row->eps_sample = deviation, row->eps_output = level;
  } else {
    row->x0_output = 1.0F;
    row->eps_sample = 1.0F, row->eps_output = -level, row->eps_divisor = deviation;
  }
}

static void ddim(float now, float before, float eta, edm_coefficients *row) {
  float variance = (1.0F - before) / (1.0F - now) * (1.0F - now / before);
  float deviation = eta * sqrtf(larger(variance, 0.0F));
  float direction = larger((1.0F - before) - deviation * deviation, 0.0F);
  row->to_x0 = sqrtf(before), row->to_eps = sqrtf(direction), row->to_noise = deviation;
}

static void ddpm(float now, float before, bool large_variance, bool fresh, edm_coefficients *row) {
  float alpha = now / before;
  float beta = 1.0F - alpha;
  float left = 1.0F - before, right = 1.0F - now;
  float variance = large_variance ? beta : larger(left / right * beta, 1e-20F);
  row->to_x0 = sqrtf(before) * beta / right;
  row->to_sample = sqrtf(alpha) * left / right;
  row->to_noise = fresh ? sqrtf(variance) : 0.0F;
}

/* DPM-Solver++'s measure of noise, sigma / alpha. */
static float sigma_of(float bar) { return sqrtf((1.0F - bar) / bar); }

static float level_of(float sigma) { return 1.0F / sqrtf(sigma * sigma + 1.0F); }

/* The shares of image and noise at a timestep, sqrt(bar) and sqrt(1 - bar), as the sampler computes them. */
static void shares(edm_sampler sampler, float bar, float *level, float *deviation) {
  if (sampler == EDM_DPM_SOLVER_PP) {
    float sigma = sigma_of(bar);
    *level = level_of(sigma), *deviation = sigma * *level;
  } else {
    *level = sqrtf(bar), *deviation = sqrtf(1.0F - bar);
  }
}

static float lambda_of(float sigma) {
  float level = level_of(sigma);
  return (float)natural_log((double)level) - (float)natural_log((double)(sigma * level));
}

/* From `now` to `following`; `earlier` is that of the step before, 0 where the first order is taken. */
static void solver(bool heun, float earlier, float now, float following, edm_coefficients *row) {
  float alpha = level_of(following);
  row->to_x0 = alpha, row->to_sample = following * alpha / (now * level_of(now));
  if (following == 0.0F) return;
  float h = lambda_of(following) - lambda_of(now);
  float decay = (float)natural_exp(-(double)h) - 1.0F;
  row->to_x0 = -(alpha * decay);
  if (earlier == 0.0F) return;
  float h_before = lambda_of(now) - lambda_of(earlier);
  if (h == 0.0F || h_before == 0.0F) return;
  row->trend_scale = 1.0F / (h_before / h);
  row->to_trend = heun ? alpha * (decay / h + 1.0F) : 0.5F * row->to_x0;
}

void edm_step_coefficients(const edm_noise_schedule *noise, const edm_schedule *schedule, const int64_t *timesteps,
                           int first, int step, edm_coefficients *row) {
  const float *alphas = noise->alphas_cumprod;
  float now = alphas[timesteps[step]], level, deviation;
  shares(schedule->sampler, now, &level, &deviation);
  bool last = step + 1 == schedule->steps;
  memset(row, 0, sizeof *row);
  if (schedule->sampler == EDM_DDPM) {
    ddpm(now, last ? 1.0F : alphas[timesteps[step + 1]], noise->large_variance, timesteps[step] > 0, row);
  } else if (schedule->sampler == EDM_DDIM) {
    int64_t previous = timesteps[step] - noise->train_timesteps / schedule->steps;
    if (schedule->timesteps) previous = last ? -1 : timesteps[step + 1];
    float end = noise->alpha_to_one ? 1.0F : alphas[0];
    ddim(now, previous >= 0 ? alphas[previous] : end, (float)schedule->eta, row);
  } else {
    float end = noise->end_at_zero ? 0.0F : sigma_of(alphas[0]);
    bool few = noise->lower_order_final && schedule->steps < FEW_STEPS;
    bool lower = last && (noise->euler_at_final || few);
    bool second = noise->solver_order > 1 && step > first && !lower;
    solver(noise->heun, second ? sigma_of(alphas[timesteps[step - 1]]) : 0.0F, sigma_of(now),
           last ? end : sigma_of(alphas[timesteps[step + 1]]), row);
  }
  predict((edm_prediction)noise->prediction, level, deviation, row);
}

/* --- applying them --------------------------------------------------------------------------------------- */

void edm_advance(const edm_coefficients *row, float clip, const float *output, const float *fresh, uint64_t count,
                 float *x, float *x0) {
  edm_coefficients c = *row;
  for (uint64_t i = 0; i < count; ++i) {
    float estimate = (c.x0_sample * x[i] + c.x0_output * output[i]) / c.x0_divisor;
    if (clip > 0.0F) estimate = estimate < -clip ? -clip : estimate > clip ? clip : estimate;
    float eps = (c.eps_sample * x[i] + c.eps_output * output[i]) / c.eps_divisor;
    x[i] = (c.to_x0 * estimate + c.to_eps * eps) + c.to_sample * x[i];
    if (c.to_trend != 0.0F) x[i] = x[i] + c.to_trend * (c.trend_scale * (estimate - x0[i]));
    x0[i] = estimate;
  }
  if (!fresh) return;
  for (uint64_t i = 0; i < count; ++i) x[i] = x[i] + c.to_noise * fresh[i];
}

void edm_guide(const float *conditional, const float *unconditional, float guidance, uint64_t count, float *output) {
  for (uint64_t i = 0; i < count; ++i)
    output[i] = unconditional[i] + guidance * (conditional[i] - unconditional[i]);
}

void edm_add_noise(const edm_noise_schedule *noise, edm_sampler sampler, int64_t timestep, const float *image,
                   uint64_t count, float *x) {
  float level, deviation;
  shares(sampler, noise->alphas_cumprod[timestep], &level, &deviation);
  for (uint64_t i = 0; i < count; ++i) x[i] = level * image[i] + deviation * x[i];
}
