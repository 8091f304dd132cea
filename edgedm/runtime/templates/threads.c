/* A pool of threads for the kernels' parallel loops: workers spin for a moment, then sleep. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "runtime.h"

enum { SPINS = 4000 }; /* about 20 microseconds: longer than the gap between two kernels of a small model */

typedef struct {
  edm_pool *pool;
  pthread_t thread;
  int number;
} worker;

/* Its first member is a pointer to edm_pool_run, because TVMBackendParallelLaunch may come from another bundle. */
struct edm_pool {
  int (*run)(edm_pool *pool, edm_parallel_body body, void *closure, int tasks);
  int threads, started;
  worker *workers; /* threads - 1; the caller is number 0 */
  atomic_uint round; /* odd or even: it changes when there is work */
  atomic_int unfinished, failed, sleeping;
  atomic_bool stopping;
  edm_parallel_body body;
  void *closure;
  int tasks;
  pthread_mutex_t lock;
  pthread_cond_t wake;
};

EDM_SHARED _Thread_local edm_pool *edm_active_pool;

edm_pool *edm_pool_enter(edm_pool *pool) {
  edm_pool *before = edm_active_pool;
  edm_active_pool = pool;
  return before;
}

static void pause_a_moment(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#endif
}

/* Thread `number` takes tasks number, number + threads, ... */
static void work(edm_pool *pool, int number) {
  TVMParallelGroupEnv group = {NULL, pool->tasks};
  for (int task = number; task < pool->tasks; task += pool->threads) {
    int status = pool->body(task, &group, pool->closure);
    if (status) atomic_store(&pool->failed, status);
  }
}

static void wait_for_round(edm_pool *pool, unsigned seen) {
  for (int i = 0; i < SPINS; ++i) {
    if (atomic_load_explicit(&pool->round, memory_order_acquire) != seen) return;
    pause_a_moment();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleeping, 1);
  while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
  atomic_fetch_sub(&pool->sleeping, 1);
  pthread_mutex_unlock(&pool->lock);
}

static void *serve(void *argument) {
  worker *self = argument;
  edm_pool *pool = self->pool;
  for (unsigned seen = 0;; ++seen) {
    wait_for_round(pool, seen);
    if (atomic_load(&pool->stopping)) return NULL;
    work(pool, self->number);
    atomic_fetch_sub_explicit(&pool->unfinished, 1, memory_order_release);
  }
}

static void start_round(edm_pool *pool) {
  atomic_fetch_add(&pool->round, 1);
  if (atomic_load(&pool->sleeping) == 0) return; /* a worker that goes to sleep now sees the new round first */
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

int edm_pool_run(edm_pool *pool, edm_parallel_body body, void *closure, int tasks) {
  pool->body = body;
  pool->closure = closure;
  pool->tasks = tasks > 0 ? tasks : pool->threads;
  atomic_store(&pool->failed, 0);
  edm_pool *before = edm_pool_enter(NULL); /* a task's own parallel loops run serially */
  if (pool->threads > 1) {
    atomic_store(&pool->unfinished, pool->threads - 1);
    start_round(pool);
  }
  work(pool, 0);
  for (int i = 0; atomic_load_explicit(&pool->unfinished, memory_order_acquire); ++i) {
    if (i < SPINS) pause_a_moment();
    else sched_yield();
  }
  edm_pool_enter(before);
  return atomic_load(&pool->failed);
}

edm_status edm_pool_create(int threads, edm_pool **created) {
  *created = NULL;
  edm_pool *pool = calloc(1, sizeof *pool);
  worker *workers = calloc((size_t)threads, sizeof *workers);
  if (!pool || !workers) {
    free(pool);
    free(workers);
    return edm_fail(EDM_NO_MEMORY, "no memory for a pool of %d threads", threads);
  }
  pool->run = edm_pool_run;
  pool->threads = threads;
  pool->workers = workers;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  for (int i = 1; i < threads; ++i) {
    worker *next = &workers[pool->started];
    next->pool = pool;
    next->number = i;
    if (pthread_create(&next->thread, NULL, serve, next)) {
      edm_pool_free(pool);
      return edm_fail(EDM_NO_MEMORY, "could not start thread %d of %d", i + 1, threads);
    }
    ++pool->started;
  }
  *created = pool;
  return EDM_OK;
}

void edm_pool_free(edm_pool *pool) {
  if (!pool) return;
  atomic_store(&pool->stopping, true);
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->round, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < pool->started; ++i) pthread_join(pool->workers[i].thread, NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->lock);
  free(pool->workers);
  free(pool);
}

/* --- what the kernels call ------------------------------------------------------------------------------- */

/* tasks 0 means: as many as there are threads */
EDM_SHARED int TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int tasks) {
  if (edm_active_pool) return edm_active_pool->run(edm_active_pool, body, closure, tasks);
  TVMParallelGroupEnv group = {NULL, tasks > 0 ? tasks : 1};
  int status = 0;
  for (int task = 0; task < group.num_task && !status; ++task) status = body(task, &group, closure);
  return status;
}
