/* Several threads, each with sessions of its own on one model, draw at once: many_sessions WEIGHTS. Prints whether all
 * drew the same image, after one was cancelled in the middle, and whether models opened at once run the same variant. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgedm.h"

enum { THREADS = 4, FLOATS = 64, STEPS = 6 };

typedef struct {
  const char *weights;
  edm_model *model;
  int number;
  float image[FLOATS];
  int failed;
} job;

static int stop_soon(void *user, uint64_t done, uint64_t total) {
  (void)user, (void)total;
  return done >= 3;
}

static int open_another(const job *it) {
  edm_source source = {.path = it->weights};
  edm_model *own;
  if (edm_open(&source, &own)) return 1;
  int failed = strcmp(edm_model_variant(own), edm_model_variant(it->model));
  edm_close(own);
  return failed;
}

static int draw(job *it) {
  edm_session *session;
  edm_session_options options = {.threads = 1 + it->number % 3};
  edm_schedule schedule = {.steps = STEPS, .sampler = EDM_DPM_SOLVER_PP};
  edm_conditions conditions = {.label = 1};
  static const float start[2 * FLOATS] = {0.5F};
  edm_sample_options wanted = {.seed = 5, .images = 2, .start = start, .strength = 0.7};
  float images[2 * FLOATS], x[FLOATS], preview[FLOATS];
  int failed = edm_session_create(it->model, &options, &session) || edm_prepare(session, &schedule, &conditions);
  failed = failed || edm_sample(session, &wanted, images, stop_soon, NULL) != EDM_CANCELLED;
  failed = failed || edm_sample(session, &wanted, images, NULL, NULL) || edm_begin(session, &wanted);
  while (!failed && edm_steps_left(session) > 0) failed = edm_next(session, preview) != EDM_OK;
  failed = failed || edm_current(session, x) || memcmp(x, images, sizeof x);
  memcpy(it->image, x, sizeof x);
  edm_session_free(session);
  return failed;
}

static void *work(void *argument) {
  job *it = argument;
  for (int i = 0; i < 3 && !it->failed; ++i) it->failed = open_another(it) || draw(it);
  return NULL;
}

int main(int count, char **arguments) {
  static job jobs[THREADS];
  pthread_t threads[THREADS];
  edm_model *model;
  edm_source source = {.path = arguments[1]};
  if (count != 2 || edm_open(&source, &model)) return 2;
  for (int i = 0; i < THREADS; ++i) {
    jobs[i] = (job){.weights = arguments[1], .model = model, .number = i};
    if (pthread_create(&threads[i], NULL, work, &jobs[i])) return 2;
  }
  int failed = 0;
  for (int i = 0; i < THREADS; ++i) {
    pthread_join(threads[i], NULL);
    failed |= jobs[i].failed || memcmp(jobs[i].image, jobs[0].image, sizeof jobs[0].image);
  }
  edm_close(model);
  puts(failed ? "differ" : "same");
  return failed;
}
