/* Is this device's arithmetic right? Every golden step is run on the reference's own input and carried state, so
 * that errors don't add up, and compared with the reference's output.
 *
 * File: "EDMGOLD1", u32 steps, u32 states, f32 allowed relative error, u32 decoded; then for every step: i64 timestep,
 * i64 label, u32 has_state, u32 0, x, the text condition if the model has one, every state in the kernels' layout,
 * output; then, if `decoded` is 1, a latent and its image. Little endian. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

typedef struct {
  char magic[8];
  uint32_t steps, states;
  float allowed;
  uint32_t decoded;
} golden_header;

typedef struct {
  int64_t timestep, label;
  uint32_t has_state, reserved;
} golden_step;

/* Root of the summed squares of (got - want), over that of want. */
static double relative_error(const float *got, const float *want, uint64_t count) {
  double difference = 0.0, size = 0.0;
  for (uint64_t i = 0; i < count; ++i) {
    double gap = (double)got[i] - (double)want[i];
    difference += gap * gap;
    size += (double)want[i] * (double)want[i];
  }
  return size > 0.0 ? sqrt(difference / size) : sqrt(difference);
}

static bool take(FILE *file, void *data, uint64_t bytes) { return fread(data, 1, (size_t)bytes, file) == bytes; }

/* `scratch` holds x, got, want, the condition and the largest state. */
static edm_status run_step(edm_session *session, FILE *file, const char *path, uint8_t *scratch, double *error) {
  uint64_t floats = edm_image_floats(), bytes = floats * sizeof(float);
  float *x = (float *)(void *)scratch, *got = x + floats, *want = got + floats;
  float *text = want + floats;
  uint64_t text_floats = edm_condition_floats();
  uint8_t *state = (uint8_t *)(text + text_floats);
  golden_step step;
  if (!take(file, &step, sizeof step) || !take(file, x, bytes) || !take(file, text, text_floats * sizeof(float)))
    return edm_fail(EDM_BAD_FILE, "%s: truncated", path);
  edm_schedule schedule = {.steps = 1, .sampler = EDM_DDIM, .timesteps = &step.timestep};
  edm_conditions conditions = {.label = step.label, .guidance = 1.0F};
  if (text_floats) conditions.encoder_hidden_states = text;
  edm_status status = edm_prepare(session, &schedule, &conditions);
  if (status) return status;
  for (int i = 0; i < edm_state_count(); ++i) {
    if (!take(file, state, edm_state_bytes(i))) return edm_fail(EDM_BAD_FILE, "%s: truncated", path);
    if (step.has_state) edm_state_write(session, i, state);
  }
  if (!take(file, want, bytes)) return edm_fail(EDM_BAD_FILE, "%s: truncated", path);
  status = edm_step(session, 0, x, got);
  *error = relative_error(got, want, floats);
  if (!status) printf("timestep %4lld  relative error %.3e\n", (long long)step.timestep, *error);
  return status;
}

/* Decode a latent and compare; float arithmetic alone, and one choice of a codebook's row a pixel. */
static edm_status run_decoder(edm_session *session, FILE *file, const char *path, double *error) {
  uint64_t floats = edm_image_floats(), decoded = edm_decoded_floats();
  float *latent = malloc((size_t)(floats + 2 * decoded) * sizeof *latent);
  if (!latent) return edm_fail(EDM_NO_MEMORY, "no memory for golden data");
  float *got = latent + floats, *want = got + decoded;
  edm_status status = EDM_OK;
  if (!take(file, latent, floats * sizeof *latent) || !take(file, want, decoded * sizeof *want))
    status = edm_fail(EDM_BAD_FILE, "%s: truncated", path);
  if (!status) status = edm_decode(session, latent, got);
  *error = relative_error(got, want, decoded);
  free(latent);
  if (!status) printf("decoder        relative error %.3e\n", *error);
  return status;
}

static edm_status run_all(edm_session *session, FILE *file, const char *path, uint32_t *steps, bool *passed) {
  golden_header header;
  if (!take(file, &header, sizeof header) || memcmp(header.magic, "EDMGOLD1", 8) ||
      header.states != edm_compiled.state_count || (header.decoded != 0) != (edm_decoded_floats() > 0))
    return edm_fail(EDM_BAD_FILE, "%s: no golden data of this model", path);
  uint64_t largest = 0;
  for (int i = 0; i < edm_state_count(); ++i)
    if (edm_state_bytes(i) > largest) largest = edm_state_bytes(i);
  uint8_t *scratch = malloc((size_t)((3 * edm_image_floats() + edm_condition_floats()) * sizeof(float) + largest));
  if (!scratch) return edm_fail(EDM_NO_MEMORY, "no memory for golden data");
  edm_status status = EDM_OK;
  *passed = header.steps > 0;
  for (uint32_t i = 0; i < header.steps && !status; ++i) {
    double error = 0.0;
    status = run_step(session, file, path, scratch, &error);
    *passed = *passed && error <= (double)header.allowed; /* false for NaN */
  }
  free(scratch);
  if (!status && header.decoded) {
    double error = 0.0;
    status = run_decoder(session, file, path, &error);
    *passed = *passed && error <= (double)header.allowed;
  }
  if (!status) printf("allowed                         %.1e\n", (double)header.allowed);
  *steps = header.steps;
  return status;
}

edm_status edm_self_test(edm_session *session, const char *path, const char *layers_path, bool *passed) {
  *passed = false;
  edm_times begun = edm_now();
  FILE *file = fopen(path, "rb");
  if (!file) return edm_fail(EDM_BAD_FILE, "%s: %s", path, strerror(errno));
  uint32_t steps = 0;
  edm_status status = run_all(session, file, path, &steps, passed);
  fclose(file);
  edm_times ended = edm_now();
  if (!status) status = edm_check_layers(session, layers_path, passed);
  if (!status) edm_print_times(&begun, &ended, steps);
  if (!status) printf("self-test %s\n", *passed ? "passed" : "FAILED");
  return status;
}
