/* What a session does after edm_prepare, with each sampler: quiet WEIGHTS THREADS. Prints how many kernels,
 * parallel tasks and callbacks ran, how many of them while a lock was held, how often memory was asked for (as
 * allocations.c counts it), and a hash of every float and every state that came out.
 *
 * The linker leads every lock, every kernel (kernels.h) and every parallel loop of theirs through the functions here. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <pthread.h>

#include "edgedm.h"
#include "kernel_abi.h"

enum { LARGEST = 4096, LARGEST_STATE = 1 << 20, STEPS = 4, IMAGES = 5 }; /* floats of an image, bytes of a state */

static atomic_bool watching;
extern atomic_long allocations;
static atomic_long kernels, tasks, callbacks, locked;
static uint64_t bits = 0xcbf29ce484222325;
extern _Thread_local int held; /* locks; not of the library, whose own variables are to be made by nobody else */

static void look(atomic_long *count) {
  if (!atomic_load(&watching)) return;
  atomic_fetch_add(count, 1);
  if (held) atomic_fetch_add(&locked, 1);
}

/* --- locks, kernels, parallel loops: through --wrap ------------------------------------------------------ */

int __real_pthread_mutex_lock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_lock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_lock(pthread_mutex_t *lock) { return ++held, __real_pthread_mutex_lock(lock); }

int __real_pthread_mutex_unlock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *lock) { return --held, __real_pthread_mutex_unlock(lock); }

typedef struct {
  edm_parallel_body body;
  void *closure;
} loop;

static int run_task(int task, TVMParallelGroupEnv *group, void *closure) {
  const loop *it = closure;
  look(&tasks);
  return it->body(task, group, it->closure);
}

int __real_TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int count);
int __wrap_TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int count);
int __wrap_TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int count) {
  loop it = {body, closure};
  return __real_TVMBackendParallelLaunch(run_task, &it, count);
}

#define KERNEL(name)                                                                            \
  int __real_##name(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);  \
  int __wrap_##name(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);  \
  int __wrap_##name(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) { \
    look(&kernels);                                                                             \
    return __real_##name(self, arguments, count, result);                                       \
  }
#include "kernels.h"

/* --- what an app does ------------------------------------------------------------------------------------ */

static int told(void *user, uint64_t done, uint64_t total) {
  (void)user, (void)done, (void)total;
  look(&callbacks);
  return 0;
}

static int cancelled(void *user, uint64_t done, uint64_t total) {
  (void)user, (void)total;
  look(&callbacks);
  return done > 2;
}

static void see(const void *data, size_t bytes) { /* FNV-1a */
  for (const uint8_t *at = data, *end = at + bytes; at < end; ++at) bits = (bits ^ *at) * 0x100000001b3;
}

static size_t bytes_of(const int64_t shape[3]) { return (size_t)(shape[0] * shape[1] * shape[2]) * sizeof(float); }

static bool draw(edm_session *session) {
  static float images[IMAGES * LARGEST], preview[LARGEST], decoded[LARGEST];
  static uint8_t state[LARGEST_STATE];
  int64_t timesteps[STEPS], shape[3];
  edm_image_shape(shape);
  size_t bytes = bytes_of(shape);
  edm_sample_options options = {.seed = 3, .images = IMAGES};
  bool well = edm_sample(session, &options, images, cancelled, NULL) == EDM_CANCELLED;
  well = well && edm_sample(session, &options, images, told, NULL) == EDM_OK;
  see(images, IMAGES * bytes);
  well = well && edm_begin(session, &options) == EDM_OK;
  while (well && edm_steps_left(session) > 0) {
    well = edm_next(session, preview) == EDM_OK;
    see(preview, bytes);
  }
  well = well && edm_current(session, images) == EDM_OK && edm_reset(session) == EDM_OK;
  see(images, bytes);
  for (int step = 0; step < STEPS; ++step) {
    well = well && edm_step(session, step, images, preview) == EDM_OK;
    see(preview, bytes);
  }
  for (int i = 0; i < edm_state_count(); ++i) {
    well = well && edm_state_bytes(i) <= sizeof state && edm_state_read(session, i, state) == EDM_OK &&
           edm_state_write(session, i, state) == EDM_OK;
    see(state, edm_state_bytes(i));
  }
  edm_decoded_shape(shape);
  if (shape[0]) well = well && edm_decode(session, images, decoded) == EDM_OK;
  see(decoded, bytes_of(shape));
  return well && edm_timesteps(session, timesteps) == EDM_OK;
}

int main(int count, char **arguments) {
  edm_model *model;
  edm_session *session;
  if (count != 3) return 2;
  edm_source source = {.path = arguments[1]};
  edm_session_options options = {.threads = atoi(arguments[2])};
  static float text[LARGEST];
  int64_t shape[2];
  edm_condition_shape(shape);
  edm_conditions conditions = {.label = -1, .guidance = 1.0F, .encoder_hidden_states = shape[0] ? text : NULL};
  if (edm_open(&source, &model) || edm_session_create(model, &options, &session))
    return fprintf(stderr, "%s\n", edm_last_error()), 2;
  bool well = true;
  long asked = 0;
  for (edm_sampler sampler = EDM_DDIM; sampler <= EDM_DPM_SOLVER_PP; ++sampler) {
    edm_schedule schedule = {.steps = STEPS, .sampler = sampler, .eta = sampler == EDM_DDIM ? 0.5 : 0.0};
    if (edm_prepare(session, &schedule, &conditions)) return fprintf(stderr, "%s\n", edm_last_error()), 2;
    long before = atomic_load(&allocations);
    atomic_store(&watching, true);
    well = draw(session) && well;
    atomic_store(&watching, false);
    asked += atomic_load(&allocations) - before;
  }
  edm_session_free(session);
  edm_close(model);
  printf("kernels %ld\ntasks %ld\ncallbacks %ld\nlocked %ld\n", kernels, tasks, callbacks, locked);
  printf("asked %ld\nbits %" PRIu64 "\n", asked, bits);
  return well ? 0 : 1;
}
