/* Drawing images: several at once in lanes while there are enough of them, the rest with parallel kernels. */
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
  uint32_t end;     /* images of this round: 0..end-1, the first of every lane fixed, then whoever is free */
  atomic_uint next; /* the first that is not begun */
  atomic_ullong steps_done;
  atomic_int status; /* the first thing that went wrong */
  char message[512];
} drawing;

static void stop(drawing *job, edm_status status) {
  int expected = EDM_OK;
  if (atomic_compare_exchange_strong(&job->status, &expected, (int)status))
    snprintf(job->message, sizeof job->message, "%s", edm_last_error()); /* that of the failing thread */
}

/* Only on the caller's thread. */
static void tell(drawing *job) {
  uint64_t total = (uint64_t)job->options->images * (uint64_t)job->session->steps;
  if (job->progress && job->progress(job->user, atomic_load(&job->steps_done), total))
    stop(job, edm_fail(EDM_CANCELLED, "cancelled by the caller"));
}

static void draw_image(drawing *job, int lane_number, uint32_t index) {
  edm_session *session = job->session;
  edm_lane *lane = &session->lanes[lane_number];
  uint64_t floats = edm_image_floats(), seed = job->options->seed;
  uint32_t image = job->options->first_image + index;
  edm_lane_reset(lane);
  edm_normals(seed, image, 0, floats, lane->x);
  for (int step = 0; step < session->steps && !atomic_load(&job->status); ++step) {
    const edm_coefficients *row = &session->coefficients[step];
    edm_status status = edm_lane_step(session, lane, step);
    if (status) {
      stop(job, status);
      return;
    }
    bool fresh = row->to_noise != 0.0F;
    if (fresh) edm_normals(seed, image, (uint32_t)step + 1, floats, lane->noise);
    edm_advance(row, edm_compiled.noise.clip, lane->outputs[EDM_CONDITIONAL], fresh ? lane->noise : NULL, floats,
                lane->x);
    atomic_fetch_add(&job->steps_done, 1);
    if (lane_number == 0) tell(job); /* lane 0 is the caller's thread */
  }
  memcpy(job->images + index * floats, lane->x, (size_t)floats * sizeof(float));
}

/* The caller's thread has nothing left to draw: report what the others do, so that it can be cancelled. */
static void watch_others(drawing *job) {
  uint64_t wanted = (uint64_t)job->end * (uint64_t)job->session->steps;
  struct timespec moment = {0, 2000000};
  while (!atomic_load(&job->status) && atomic_load(&job->steps_done) < wanted) {
    nanosleep(&moment, NULL);
    tell(job);
  }
}

static int draw_in_lane(int lane, TVMParallelGroupEnv *group, void *closure) {
  drawing *job = closure;
  (void)group;
  for (uint32_t index = (uint32_t)lane; index < job->end && !atomic_load(&job->status);
       index = atomic_fetch_add(&job->next, 1))
    draw_image(job, lane, index);
  if (lane == 0) watch_others(job);
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
  if (!session->steps) return edm_fail(EDM_BAD_ARGUMENT, "edm_sample before edm_prepare");
  drawing job = {.session = session, .options = options, .images = images, .progress = progress, .user = user};
  uint32_t lanes = (uint32_t)session->lane_count;
  uint32_t together = lanes > 1 ? options->images / lanes * lanes : 0;
  if (together) {
    job.end = together;
    atomic_store(&job.next, lanes);
    edm_pool_run(session->pool, draw_in_lane, &job, session->lane_count);
  }
  draw_rest(&job, together);
  edm_status status = (edm_status)atomic_load(&job.status);
  return status ? edm_fail(status, "%s", job.message) : EDM_OK;
}
