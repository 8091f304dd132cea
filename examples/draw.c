/* Draw one image with a bundle, step by step: draw BUNDLE LABEL OUTPUT.png */
#include <stdio.h>
#include <stdlib.h>

#include <edgedm.h>

static void check(edm_status status) {
  if (status == EDM_OK) return;
  fprintf(stderr, "draw: %s\n", edm_last_error());
  exit(1);
}

int main(int count, char **arguments) {
  if (count != 4) return fprintf(stderr, "usage: draw BUNDLE LABEL OUTPUT.png\n"), 2;
  char weights[4096];
  snprintf(weights, sizeof weights, "%s/weights.bin", arguments[1]);

  edm_model *model;
  edm_session *session;
  edm_source source = {.path = weights};
  edm_session_options options = {.threads = 2};
  check(edm_open(&source, &model));
  check(edm_session_create(model, &options, &session));

  edm_schedule schedule = {.steps = 20, .sampler = EDM_DPM_SOLVER_PP};
  edm_conditions conditions = {.label = atoi(arguments[2])};
  edm_sample_options draw = {.seed = 0, .images = 1};
  check(edm_prepare(session, &schedule, &conditions));

  int64_t shape[3];
  edm_image_shape(shape);
  float *image = malloc((size_t)(shape[0] * shape[1] * shape[2]) * sizeof *image);
  if (!image) return 1;
  check(edm_begin(session, &draw));
  while (edm_steps_left(session) > 0) {
    check(edm_next(session, image)); /* image: the finished one as this step expects it; an app shows it */
    printf("%d steps left, first pixel %.2f\n", edm_steps_left(session), (double)image[0]);
  }
  check(edm_current(session, image));
  check(edm_write_images(arguments[3], image, 1));

  free(image);
  edm_session_free(session);
  edm_close(model);
  return 0;
}
