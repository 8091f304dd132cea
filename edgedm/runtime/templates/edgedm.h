/* The C interface of one compiled diffusion model.
 *
 *   edm_model *model;  edm_session *session;
 *   edm_source source = {.path = "model.bundle/weights.bin"};
 *   edm_session_options options = {.threads = 2};
 *   edm_schedule schedule = {.steps = 50, .sampler = EDM_DDIM};
 *   edm_conditions conditions = {.label = 7, .guidance = 1.5f};
 *   edm_sample_options draw = {.seed = 0, .images = 16};
 *   if (edm_open(&source, &model) || edm_session_create(model, &options, &session) ||
 *       edm_prepare(session, &schedule, &conditions) || edm_sample(session, &draw, images, NULL, NULL))
 *     fprintf(stderr, "%s\n", edm_last_error());
 *
 * A model is immutable and may be shared by any number of threads; a session owns everything that changes and
 * belongs to one thread at a time. No function allocates memory while sampling: edm_session_create and
 * edm_prepare do. Images and eps are float32 in [channel][row][column] order, images nominally in -1..1.
 *
 * Of a library that a program loads, and on Android, the system makes a thread's own variables, a kilobyte, when it
 * first needs them: a session's threads have theirs once edm_session_create returns, the thread that prepared once
 * edm_prepare does, any other after its first call of a function here. Without memory for them the system itself ends
 * the program, as for any library's.
 *
 * Where NULL is not said to be allowed, functions that return edm_status refuse it with EDM_BAD_ARGUMENT; edm_close,
 * edm_session_free, edm_session_bytes and edm_steps_left take it for nothing; to the others it must not be given. */
#ifndef EDGEDM_H
#define EDGEDM_H

#include <stddef.h>
#include <stdint.h>

#include "edgedm_names.h" /* gives every edm_ function the prefix of this bundle */

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EDM_API __attribute__((visibility("default")))
#else
#define EDM_API
#endif

typedef enum {
  EDM_OK = 0,
  EDM_BAD_ARGUMENT = 1, /* the caller asked for what this model cannot do */
  EDM_BAD_FILE = 2,     /* weights missing, truncated or altered */
  EDM_NO_MEMORY = 3,
  EDM_KERNEL_FAILED = 4, /* a kernel refused its arguments: a defect of the bundle */
  EDM_CANCELLED = 5,
  EDM_IO_FAILED = 6,
  EDM_WRONG_MACHINE = 7 /* its processor lacks what the kernels need */
} edm_status;

typedef enum { EDM_DDIM = 0, EDM_DDPM = 1, EDM_DPM_SOLVER_PP = 2 /* 2M */ } edm_sampler;

typedef struct edm_model edm_model;
typedef struct edm_session edm_session;

/* Where weights.bin is: `memory` (kept by the caller while the model lives, 64-byte aligned or else copied),
 * or `path`, or an open file `fd` (used if path and memory are NULL); `length` 0 means up to the end. A file is mapped
 * if `offset` is a multiple of 64, or else what the variant reads of it is copied.
 * `variant` is the name of the variant to run, see edm_variant_name; NULL: the one that the environment variable
 * EDGEDM_FEATURES names (then no other thread may change the environment meanwhile), without it the best that this
 * machine can run, which "" asks for whatever the environment says. */
typedef struct {
  const char *path;
  int fd;
  uint64_t offset;
  uint64_t length;
  const void *memory;
  const char *variant;
} edm_source;

typedef struct {
  int threads; /* 0 means 1 */
  int lanes;   /* images drawn at once, each with its own arena; 0 means as many as threads */
  void *memory; /* edm_session_bytes() bytes, 64-byte aligned; or NULL: the session allocates them */
  const int *cores; /* the session's own threads run on these `core_count` cores; 0: on any. The calling thread works */
  int core_count;   /* too: edm_pin_thread is for it */
} edm_session_options;

typedef struct {
  int steps;
  edm_sampler sampler;
  double eta;               /* DDIM's share of fresh noise, 0..1; 0 for the other samplers */
  const int64_t *timesteps; /* `steps` of them, descending; or NULL: spaced as the model's noise schedule says */
} edm_schedule;

typedef struct {
  int64_t label;  /* class, or -1: unconditional */
  float guidance; /* classifier-free guidance: 1 (or 0, the unset value) is off */
  /* a text condition, of edm_condition_shape; needed where the model has one. negative: what guidance leads away from,
   * or NULL: zeros. Both are copied. */
  const float *encoder_hidden_states, *negative_encoder_hidden_states;
} edm_conditions;

typedef struct {
  uint64_t seed;
  uint32_t first_image; /* number of the first image: image i of a seed is the same in every call */
  uint32_t images;
  const float *start; /* `images` images to start from, or NULL: from noise */
  double strength;    /* with `start`: this share of the steps is executed, the last ones; above 0, up to 1 */
} edm_sample_options;

/* Called on the caller's thread once for every step of every image; a result other than 0 cancels. It may use other
 * sessions; functions that draw with its own or change it answer EDM_BAD_ARGUMENT, and it must not free that. It has to
 * return: no exception and no longjmp may leave it. */
typedef int (*edm_progress_fn)(void *user, uint64_t steps_done, uint64_t steps_total);

/* What went wrong in the last call of this thread that did not return EDM_OK; "" if there was none. */
EDM_API const char *edm_last_error(void);

/* The kernels may be here several times, for processors with more and with fewer instructions: the names of these
 * variants, the most demanding first; NULL beyond the last. */
EDM_API const char *edm_variant_name(int number);

EDM_API edm_status edm_open(const edm_source *source, edm_model **model); /* checks the SHA-256 of the weights */
EDM_API const char *edm_model_variant(const edm_model *model);            /* the name of the one that it runs */
EDM_API void edm_close(edm_model *model);                                 /* after its sessions are freed */
EDM_API void edm_image_shape(int64_t shape[3]);                           /* channels, height, width */

EDM_API void edm_decoded_shape(int64_t shape[3]);                         /* of edm_decode's images; or zeros */
EDM_API void edm_condition_shape(int64_t shape[2]);                       /* tokens and their size; or zeros */

EDM_API size_t edm_session_bytes(const edm_session_options *options); /* enough for any variant; 0: no such session */
EDM_API edm_status edm_session_create(edm_model *model, const edm_session_options *options, edm_session **session);
EDM_API void edm_session_free(edm_session *session);

/* Choose timesteps and conditions: runs everything that depends on them alone, once. If that fails, nothing is
 * prepared, nor what was before. */
EDM_API edm_status edm_prepare(edm_session *session, const edm_schedule *schedule, const edm_conditions *conditions);
EDM_API edm_status edm_timesteps(const edm_session *session, int64_t *timesteps);

/* The model's output at step 0.. of the prepared schedule. Carried state lives in the session; edm_reset starts
 * a new trajectory. */
EDM_API edm_status edm_step(edm_session *session, int step, const float *x, float *output);
EDM_API edm_status edm_reset(edm_session *session);

/* Carried state number 0..edm_state_count()-1 of the conditional pass, in the kernels' layout (manifest.json);
 * writing all of them continues a trajectory from outside. */
EDM_API int edm_state_count(void);
EDM_API uint64_t edm_state_bytes(int state);
EDM_API edm_status edm_state_read(const edm_session *session, int state, void *data);
EDM_API edm_status edm_state_write(edm_session *session, int state, const void *data);

EDM_API edm_status edm_sample(edm_session *session, const edm_sample_options *options, float *images,
                              edm_progress_fn progress, void *user);

/* The same step by step, for an app that draws previews: image `first_image` of the options alone.
 *
 *   edm_begin(session, &options);
 *   while (edm_steps_left(session) > 0 && edm_next(session, preview) == EDM_OK) show(preview);
 *   edm_current(session, image);
 *
 * `preview` (or NULL) receives the finished image as this step estimates it; edm_current gives x as it is now, after
 * the last step the very image of edm_sample. edm_sample, edm_step, edm_reset, edm_prepare, edm_state_write and
 * edm_profile end the drawing. */
EDM_API edm_status edm_begin(edm_session *session, const edm_sample_options *options);
EDM_API int edm_steps_left(const edm_session *session);
EDM_API edm_status edm_next(edm_session *session, float *preview);
EDM_API edm_status edm_current(const edm_session *session, float *x);

/* The fast cores of a machine that has slow ones too, else all cores: writes up to `room` numbers, returns how many
 * there are. */
EDM_API int edm_big_cores(int *cores, int room);
/* Let the calling thread run on these cores only. */
EDM_API edm_status edm_pin_thread(const int *cores, int count);

/* Noise as edm_sample draws it: draw 0 starts an image, draw i + 1 is added by step i. */
EDM_API void edm_normals(uint64_t seed, uint32_t image, uint32_t draw, uint64_t count, float *values);

/* A latent model's samples are latents: the image of one of them. */
EDM_API edm_status edm_decode(edm_session *session, const float *latent, float *image);

/* Write images as a grid (.png, 1 or 3 channels) or an array (.npy), whole or not at all. A file of that name is
 * replaced; what is there and no file, as a pipe or a folder, is refused. */
EDM_API edm_status edm_write_images(const char *path, const float *images, uint32_t count);
EDM_API edm_status edm_write_decoded(const char *path, const float *images, uint32_t count); /* edm_decode's */

#ifdef EDM_PROBE
/* Run call number `call` of a graph ("step", "prepare" or "decoder") alone. `inputs` and `outputs` point to its non-constant
 * tensors in the order of the manifest. */
EDM_API edm_status edm_run_node(edm_session *session, const char *graph, int call, const void *const *inputs,
                                void *const *outputs);

/* Run `step` on x like edm_step, and tell how long each call of the conditional pass took. */
EDM_API int edm_call_count(const edm_session *session);
EDM_API edm_status edm_profile(edm_session *session, int step, const float *x, uint64_t *nanoseconds);
#endif

#ifdef __cplusplus
}
#endif
#endif
