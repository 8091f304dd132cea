/* Drawing images: several at once in lanes while there are enough of them, the rest with parallel kernels. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime.h"

typedef struct {
  edm_session *session;
  const edm_sample_options *options;
  float *images;
  edm_progress_fn progress;
  void *user;
  pthread_t caller;
  int first;        /* step of every image */
  uint32_t end;     /* images of this round: 0..end-1, drawn by whoever is free */
  atomic_uint next; /* the first that is not begun */
  atomic_ullong steps_done;
  uint64_t told; /* of them */
  atomic_int status; /* the first thing that went wrong */
  char message[512];
} drawing;

static void stop(drawing *job, edm_status status) {
  int expected = EDM_OK;
  if (atomic_compare_exchange_strong(&job->status, &expected, (int)status))
    snprintf(job->message, sizeof job->message, "%s", edm_last_error()); /* that of the failing thread */
}

static uint64_t steps_of(const drawing *job, uint32_t images) {
  return (uint64_t)images * (uint64_t)(job->session->steps - job->first);
}

static bool on_callers_thread(const drawing *job) { return pthread_equal(job->caller, pthread_self()) != 0; }

/* Tell of every step that was done since the last time; only on the caller's thread. */
static void tell(drawing *job) {
  uint64_t total = steps_of(job, job->options->images), done = atomic_load(&job->steps_done);
  while (job->progress && job->told < done && !atomic_load(&job->status))
    if (job->progress(job->user, ++job->told, total)) stop(job, edm_fail(EDM_CANCELLED, "cancelled by the caller"));
}

static void draw_image(drawing *job, int lane_number, uint32_t index) {
  edm_session *session = job->session;
  edm_lane *lane = &session->lanes[lane_number];
  uint64_t floats = edm_image_floats();
  edm_begin_image(session, lane, job->options, index, job->first);
  for (int step = job->first; step < session->steps && !atomic_load(&job->status); ++step) {
    edm_status status = edm_step_image(session, lane, job->options, index, job->first, step);
    if (status) {
      stop(job, status);
      return;
    }
    atomic_fetch_add(&job->steps_done, 1);
    if (on_callers_thread(job)) tell(job);
  }
  memcpy(job->images + index * floats, lane->x, (size_t)floats * sizeof(float));
}

/* The caller's thread has nothing left to draw: report what the others do, so that it can be cancelled. */
static void watch_others(drawing *job) {
  uint64_t wanted = steps_of(job, job->end);
  struct timespec moment = {0, 2000000};
  while (!atomic_load(&job->status) && atomic_load(&job->steps_done) < wanted) {
    nanosleep(&moment, NULL);
    tell(job);
  }
}

static int draw_in_lane(int lane, TVMParallelGroupEnv *group, void *closure) {
  drawing *job = closure;
  (void)group;
  uint32_t index;
  while (!atomic_load(&job->status) && (index = atomic_fetch_add(&job->next, 1)) < job->end)
    draw_image(job, lane, index);
  if (on_callers_thread(job)) watch_others(job);
  return 0;
}

/* The images that are too few for all lanes, one by one with parallel kernels. */
static void draw_rest(drawing *job, uint32_t first) {
  edm_pool *before = edm_pool_enter(job->session->pool);
  for (uint32_t index = first; index < job->options->images && !atomic_load(&job->status); ++index)
    draw_image(job, 0, index);
  edm_pool_enter(before);
}

edm_status edm_sample(edm_session *session, const edm_sample_options *options, float *images,
                      edm_progress_fn progress, void *user) {
  if (!session || !options || !images) return edm_null("edm_sample");
  if (session->busy) return edm_busy("edm_sample");
  drawing job = {.session = session, .options = options, .images = images, .progress = progress, .user = user};
  edm_status status = edm_first_step(session, options, &job.first);
  if (!status) status = edm_check_drawing(options, options->images);
  if (status) return status;
  session->drawing = false; /* what edm_begin began lies in lane 0 */
  session->busy = true;
  job.caller = pthread_self();
  uint32_t lanes = (uint32_t)session->lane_count;
  uint32_t together = lanes > 1 ? options->images / lanes * lanes : 0;
  if (together) {
    job.end = together;
    edm_pool_run(session->pool, draw_in_lane, &job, session->lane_count);
    tell(&job);
  }
  draw_rest(&job, together);
  session->busy = false;
  status = (edm_status)atomic_load(&job.status);
  return status ? edm_fail(status, "%s", job.message) : EDM_OK;
}
