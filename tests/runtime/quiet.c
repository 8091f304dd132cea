/* What a session does after edm_prepare, with each sampler: quiet WEIGHTS THREADS. Prints how many kernels,
 * parallel tasks and callbacks ran, how many of them while a lock was held, and how often memory was asked for.
 *
 * The program's own malloc and its kin count; the linker leads every lock, every kernel (kernels.h) and every parallel
 * loop of theirs through the functions here. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <pthread.h>

#include "edgedm.h"
#include "kernel_abi.h"

enum { LARGEST = 4096, LARGEST_STATE = 1 << 20, STEPS = 4, IMAGES = 5 }; /* floats of an image, bytes of a state */

static atomic_bool watching;
static atomic_long kernels, tasks, callbacks, locked, asked;
static _Thread_local int held;

static void look(atomic_long *count) {
  if (!atomic_load(&watching)) return;
  atomic_fetch_add(count, 1);
  if (held) atomic_fetch_add(&locked, 1);
}

static void ask(void) {
  if (atomic_load(&watching)) atomic_fetch_add(&asked, 1);
}

/* --- memory: glibc's own, under its other names ---------------------------------------------------------- */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

void *malloc(size_t bytes) { return ask(), __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return ask(), __libc_calloc(count, bytes); }
void *realloc(void *memory, size_t bytes) { return ask(), __libc_realloc(memory, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { return ask(), __libc_memalign(alignment, bytes); }
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  ask();
  *memory = __libc_memalign(alignment, bytes);
  return !*memory;
}
void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
  ask();
  return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
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

static bool draw(edm_session *session) {
  static float images[IMAGES * LARGEST], preview[LARGEST], decoded[LARGEST];
  static uint8_t state[LARGEST_STATE];
  int64_t timesteps[STEPS], shape[3];
  edm_sample_options options = {.seed = 3, .images = IMAGES};
  edm_decoded_shape(shape);
  bool well = edm_sample(session, &options, images, told, NULL) == EDM_OK;
  well = well && edm_sample(session, &options, images, cancelled, NULL) == EDM_CANCELLED;
  well = well && edm_begin(session, &options) == EDM_OK;
  while (well && edm_steps_left(session) > 0) well = edm_next(session, preview) == EDM_OK;
  well = well && edm_current(session, images) == EDM_OK && edm_reset(session) == EDM_OK;
  for (int step = 0; step < STEPS; ++step) well = well && edm_step(session, step, images, preview) == EDM_OK;
  for (int i = 0; i < edm_state_count(); ++i)
    well = well && edm_state_bytes(i) <= sizeof state && edm_state_read(session, i, state) == EDM_OK &&
              edm_state_write(session, i, state) == EDM_OK;
  if (shape[0]) well = well && edm_decode(session, images, decoded) == EDM_OK;
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
  for (edm_sampler sampler = EDM_DDIM; sampler <= EDM_DPM_SOLVER_PP; ++sampler) {
    edm_schedule schedule = {.steps = STEPS, .sampler = sampler, .eta = sampler == EDM_DDIM ? 0.5 : 0.0};
    if (edm_prepare(session, &schedule, &conditions)) return fprintf(stderr, "%s\n", edm_last_error()), 2;
    atomic_store(&watching, true);
    well = draw(session) && well;
    atomic_store(&watching, false);
  }
  edm_session_free(session);
  edm_close(model);
  printf("kernels %ld\ntasks %ld\ncallbacks %ld\nlocked %ld\nasked %ld\n", kernels, tasks, callbacks, locked, asked);
  return well ? 0 : 1;
}
