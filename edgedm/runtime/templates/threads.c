/* A pool of threads for the kernels' parallel loops: workers spin for a moment, then sleep.
 *
 * The first task is the caller's: of lanes that draw images, the one that tells of progress. The others are claimed
 * one by one from `tickets`, so a loop never waits for a worker that the system has not woken yet: whoever is there
 * takes the task. A ticket is the number of the round (upper half) and which of 32 tasks nobody has claimed yet
 * (lower half, a bit each); one compare-and-swap claims a task of exactly that round. A thread claims the task of
 * its own number first: it then reads what it wrote itself in the loop before, which is still in its cache. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "runtime.h"

enum { SPINS = 4000 }; /* about 20 microseconds: longer than the gap between two kernels of a small model */
enum { CACHE_LINE = 128 }; /* two of x86's, which are fetched in pairs */
enum { TICKET = 32, TICKETS = 32 }; /* tasks of one, and tickets: no session has more than 1,024 threads or lanes */

#ifdef __wasm__ /* its threads need a page's server to send headers, and WASI has none */
enum { HAS_THREADS = 0 };
#else
enum { HAS_THREADS = 1 };
#endif

typedef struct worker {
  edm_pool *pool;
  int number; /* from 1; the caller is 0 */
  pthread_t thread;
} worker;

/* Its first member is a pointer to edm_pool_run, because TVMBackendParallelLaunch may come from another bundle.
 * Waiting workers read the first ticket all the time, and the caller `unfinished`: each has cache lines to itself, so
 * that nobody who writes anything else has to fetch one back. */
struct edm_pool {
  int (*run)(edm_pool *pool, edm_parallel_body body, void *closure, int tasks);
  int threads, started;
  worker *workers; /* threads - 1; the caller works too */
  edm_parallel_body body;
  void *closure;
  int tasks;
  atomic_int failed, sleeping;
  atomic_bool stopping;
  int ready; /* workers that serve; under the lock */
  char before_tickets[CACHE_LINE];
  atomic_uint_fast64_t tickets[TICKETS]; /* the first one's round is the pool's */
  char before_unfinished[CACHE_LINE];
  atomic_int unfinished;
  char before_lock[CACHE_LINE];
  pthread_mutex_t lock;
  pthread_cond_t wake;
};

EDM_SHARED _Thread_local edm_pool *edm_active_pool;

edm_pool *edm_pool_enter(edm_pool *pool) {
  edm_pool *before = edm_active_pool;
  edm_active_pool = pool;
  return before;
}

void edm_enter_thread(void) {
  edm_enter_errors();
  edm_enter_kernels();
  edm_pool *volatile *pool = &edm_active_pool;
  (void)*pool;
}

static void pause_a_moment(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#endif
}

static uint32_t round_of(uint_fast64_t ticket) { return (uint32_t)(ticket >> 32); }

static uint32_t current_round(edm_pool *pool) { return round_of(atomic_load(&pool->tickets[0])); }

/* Claim a task of round `current`, the thread's own if nobody has claimed it; -1: none is left. */
static int claim(edm_pool *pool, uint32_t current, int own) {
  for (int i = 0; i < TICKETS; ++i) {
    int number = (own / TICKET + i) % TICKETS;
    uint_fast64_t ticket = atomic_load(&pool->tickets[number]);
    while (round_of(ticket) == current && (uint32_t)ticket != 0) {
      int bit = own % TICKET;
      while (!(ticket >> bit & 1)) bit = (bit + 1) % TICKET;
      if (atomic_compare_exchange_weak(&pool->tickets[number], &ticket, ticket & ~((uint_fast64_t)1 << bit)))
        return number * TICKET + bit;
    }
  }
  return -1;
}

/* What a task reads of the pool was written before its round began and stays until the last one has finished. */
static void run_task(edm_pool *pool, int task) {
  TVMParallelGroupEnv group = {NULL, pool->tasks};
  int status = pool->body(task, &group, pool->closure);
  if (status) atomic_store(&pool->failed, status);
  atomic_fetch_sub_explicit(&pool->unfinished, 1, memory_order_release);
}

/* Run tasks of round `current` until none is left. */
static void work(edm_pool *pool, uint32_t current, int own) {
  int task;
  while ((task = claim(pool, current, own)) >= 0) run_task(pool, task);
}

/* Return the first round after `seen`. */
static uint32_t wait_for_round(edm_pool *pool, uint32_t seen) {
  uint32_t now;
  for (int i = 0; i < SPINS; ++i) {
    if ((now = current_round(pool)) != seen) return now;
    pause_a_moment();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleeping, 1);
  while ((now = current_round(pool)) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
  atomic_fetch_sub(&pool->sleeping, 1);
  pthread_mutex_unlock(&pool->lock);
  return now;
}

static void *serve(void *argument) {
  const worker *self = argument;
  edm_pool *pool = self->pool;
  edm_enter_thread();
  pthread_mutex_lock(&pool->lock);
  ++pool->ready;
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
  for (uint32_t seen = 0;;) {
    seen = wait_for_round(pool, seen);
    if (atomic_load(&pool->stopping)) return NULL;
    work(pool, seen, self->number);
  }
}

/* Begin a round of `tasks` tasks and return its number. The first task is nobody's to claim, and the first ticket comes
 * last: it is what workers wait for. */
static uint32_t start_round(edm_pool *pool, int tasks) {
  uint32_t next = current_round(pool) + 1;
  for (int number = tasks / TICKET; number >= 0; --number) {
    int count = tasks - number * TICKET;
    uint32_t unclaimed = count < TICKET ? ((uint32_t)1 << count) - 1 : UINT32_MAX;
    if (number == 0) unclaimed &= UINT32_MAX - 1;
    if (number < TICKETS) atomic_store(&pool->tickets[number], (uint_fast64_t)next << 32 | unclaimed);
  }
  if (atomic_load(&pool->sleeping) == 0) return next; /* a worker that goes to sleep now sees the new round first */
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
  return next;
}

int edm_pool_run(edm_pool *pool, edm_parallel_body body, void *closure, int tasks) {
  pool->body = body;
  pool->closure = closure;
  pool->tasks = tasks > 0 ? tasks : pool->threads;
  if (pool->tasks > TICKET * TICKETS)
    return (int)edm_fail(EDM_BAD_ARGUMENT, "a loop in %d tasks: expected at most %d", pool->tasks, TICKET * TICKETS);
  atomic_store(&pool->failed, 0);
  atomic_store(&pool->unfinished, pool->tasks);
  edm_pool *before = edm_pool_enter(NULL); /* a task's own parallel loops run serially */
  uint32_t begun = start_round(pool, pool->tasks);
  run_task(pool, 0);
  work(pool, begun, 0);
  for (int i = 0; atomic_load_explicit(&pool->unfinished, memory_order_acquire); ++i) {
    if (i < SPINS) pause_a_moment();
    else sched_yield();
  }
  edm_pool_enter(before);
  return atomic_load(&pool->failed);
}

/* New threads run where their creator may: it goes to the cores that the pool is to have, and comes back. Once it
 * returns they have asked for all the memory that they ever need. */
static edm_status start_workers(edm_pool *pool, const int *cores, int core_count) {
  edm_core_set before;
  edm_status status = core_count ? edm_enter_cores(cores, core_count, &before) : EDM_OK;
  if (status) return status;
  for (int i = 1; i < pool->threads && !status; ++i) {
    worker *self = &pool->workers[pool->started];
    *self = (worker){.pool = pool, .number = i};
    if (pthread_create(&self->thread, NULL, serve, self))
      status = edm_fail(EDM_NO_MEMORY, "could not start thread %d of %d", i + 1, pool->threads);
    else
      ++pool->started;
  }
  if (core_count) edm_leave_cores(&before);
  pthread_mutex_lock(&pool->lock);
  while (pool->ready < pool->started) pthread_cond_wait(&pool->wake, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
  return status;
}

edm_status edm_pool_create(int threads, const int *cores, int core_count, edm_pool **created) {
  *created = NULL;
  if (!HAS_THREADS) return edm_fail(EDM_BAD_ARGUMENT, "threads: WebAssembly has one here, got %d", threads);
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
  edm_status status = start_workers(pool, cores, core_count);
  if (status) edm_pool_free(pool);
  else *created = pool;
  return status;
}

void edm_pool_free(edm_pool *pool) {
  if (!pool) return;
  atomic_store(&pool->stopping, true);
  start_round(pool, 0);
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
