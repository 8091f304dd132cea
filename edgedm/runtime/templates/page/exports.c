/* What a page in a browser calls: the C interface with nothing but numbers and places in memory, so that JavaScript
 * lays out no struct. One model and one session a module; results are edm_status, 0 for done.
 *
 * Exports: edm_allocate, edm_start, edm_prepare, edm_begin, edm_next, edm_current, edm_decode, edm_last_error. */
#include <stdlib.h>

#include "runtime.h"

/* The name without the bundle's prefix: a module has names of its own. */
#define EXPORT(name) __attribute__((export_name(#name)))

static edm_model *model;
static edm_session *session;

/* Memory for weights or an image, kept for good; NULL if there is none. */
EXPORT(edm_allocate) void *page_allocate(uint32_t bytes) {
  if (bytes > SIZE_MAX - EDM_ALIGNMENT) return NULL;
  return aligned_alloc(EDM_ALIGNMENT, edm_align(bytes ? bytes : 1));
}

/* Open the model whose weights lie in memory of edm_allocate's, which it keeps. */
EXPORT(edm_start) edm_status page_start(const void *weights, uint32_t bytes) {
  edm_source source = {.memory = weights, .length = bytes};
  edm_session_options options = {.threads = 1};
  edm_status status = edm_open(&source, &model);
  if (!status) status = edm_session_create(model, &options, &session);
  if (!status) return EDM_OK;
  edm_close(model);
  model = NULL;
  return status;
}

/* label -1: unconditional */
EXPORT(edm_prepare) edm_status page_prepare(int steps, int sampler, double eta, int label, float guidance) {
  edm_schedule schedule = {.steps = steps, .sampler = (edm_sampler)sampler, .eta = eta};
  edm_conditions conditions = {.label = label, .guidance = guidance};
  return edm_prepare(session, &schedule, &conditions);
}

EXPORT(edm_begin) edm_status page_begin(uint64_t seed, uint32_t image) {
  edm_sample_options options = {.seed = seed, .first_image = image, .images = 1};
  return edm_begin(session, &options);
}

/* One step; `preview` receives the finished image as this step estimates it. */
EXPORT(edm_next) edm_status page_next(float *preview) { return edm_next(session, preview); }

EXPORT(edm_current) edm_status page_current(float *x) { return edm_current(session, x); }

EXPORT(edm_decode) edm_status page_decode(const float *latent, float *image) {
  return edm_decode(session, latent, image);
}

EXPORT(edm_last_error) const char *page_last_error(void) { return edm_last_error(); }
