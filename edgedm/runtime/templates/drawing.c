/* One image, step by step: what edm_sample does in every lane, and an app by edm_begin and edm_next. */
#include <math.h>
#include <string.h>

#include "runtime.h"

edm_status edm_first_step(const edm_session *session, const edm_sample_options *options, int *first) {
  *first = 0;
  if (!session->steps) return edm_fail(EDM_BAD_ARGUMENT, "drawing before edm_prepare");
  if (!options->start) return EDM_OK;
  double strength = options->strength;
  int executed = strength > 0.0 && strength <= 1.0 ? (int)(session->steps * strength) : 0;
  if (executed < 1)
    return edm_fail(EDM_BAD_ARGUMENT,
                    "strength: expected above 0, up to 1, and at least one of %d steps: got %g",
                    session->steps, strength);
  *first = session->steps - executed;
  return EDM_OK;
}

edm_status edm_check_drawing(const edm_sample_options *options, uint32_t images) {
  if (images > 0 && options->first_image > UINT32_MAX - (images - 1))
    return edm_fail(EDM_BAD_ARGUMENT, "first_image %u: the numbers of %u images end beyond %u", options->first_image,
                    images, UINT32_MAX);
  uint64_t floats = edm_image_floats(), count = options->start ? images * floats : 0;
  for (uint64_t i = 0; i < count; ++i)
    if (!isfinite(options->start[i]))
      return edm_fail(EDM_BAD_ARGUMENT, "start: value %llu of image %llu is not finite",
                      (unsigned long long)(i % floats), (unsigned long long)(i / floats));
  return EDM_OK;
}

void edm_begin_image(const edm_session *session, edm_lane *lane, const edm_sample_options *options, uint32_t index,
                     int first) {
  uint64_t floats = edm_image_floats();
  edm_lane_reset(lane);
  edm_normals(options->seed, options->first_image + index, 0, floats, lane->x);
  if (options->start)
    edm_add_noise(&edm_compiled.noise, session->schedule.sampler, session->timesteps[first],
                  options->start + index * floats, floats, lane->x);
}

edm_status edm_step_image(const edm_session *session, edm_lane *lane, const edm_sample_options *options,
                          uint32_t index, int first, int step) {
  uint64_t floats = edm_image_floats();
  edm_coefficients row;
  edm_step_coefficients(&edm_compiled.noise, &session->schedule, session->timesteps, first, step, &row);
  edm_status status = edm_lane_step(session, lane, step);
  if (status) return status;
  bool fresh = row.to_noise != 0.0F, clips = session->schedule.sampler != EDM_DPM_SOLVER_PP;
  if (fresh) edm_normals(options->seed, options->first_image + index, (uint32_t)step + 1, floats, lane->noise);
  edm_advance(&row, clips ? edm_compiled.noise.clip : 0.0F, lane->outputs[EDM_CONDITIONAL],
              fresh ? lane->noise : NULL, floats, lane->x, lane->x0);
  return EDM_OK;
}

/* --- one by one ------------------------------------------------------------------------------------------ */

edm_status edm_begin(edm_session *session, const edm_sample_options *options) {
  if (!session || !options) return edm_null("edm_begin");
  if (session->busy) return edm_busy("edm_begin");
  session->drawing = false;
  edm_status status = edm_first_step(session, options, &session->first);
  if (!status) status = edm_check_drawing(options, 1);
  if (status) return status;
  session->drawing = true;
  session->next = session->first;
  session->drawn = *options;
  edm_begin_image(session, &session->lanes[0], options, 0, session->first);
  session->drawn.start = NULL; /* the caller may free it now */
  return EDM_OK;
}

int edm_steps_left(const edm_session *session) {
  return session && session->drawing ? session->steps - session->next : 0;
}

edm_status edm_next(edm_session *session, float *preview) {
  if (!session) return edm_null("edm_next");
  if (session->busy) return edm_busy("edm_next");
  if (edm_steps_left(session) < 1)
    return edm_fail(EDM_BAD_ARGUMENT, "edm_next: no step is left; begin an image with edm_begin");
  edm_lane *lane = &session->lanes[0];
  edm_pool *before = edm_pool_enter(session->pool);
  edm_status status = edm_step_image(session, lane, &session->drawn, 0, session->first, session->next);
  edm_pool_enter(before);
  session->drawing = status == EDM_OK;
  ++session->next;
  if (!status && preview) memcpy(preview, lane->x0, (size_t)edm_image_floats() * sizeof(float));
  return status;
}

edm_status edm_current(const edm_session *session, float *x) {
  if (!session || !x) return edm_null("edm_current");
  if (session->busy) return edm_busy("edm_current");
  if (!session->drawing) return edm_fail(EDM_BAD_ARGUMENT, "edm_current: nothing is drawn; begin with edm_begin");
  memcpy(x, session->lanes[0].x, (size_t)edm_image_floats() * sizeof(float));
  return EDM_OK;
}
