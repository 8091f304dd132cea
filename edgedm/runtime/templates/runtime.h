/* Inside the runtime: the tables that the compiler generates (model.c) and what the parts share. */
#ifndef EDM_RUNTIME_H
#define EDM_RUNTIME_H

#include <stdbool.h>
#include <stdio.h>

#include "edgedm.h"
#include "kernel_abi.h"

enum { EDM_ALIGNMENT = 64 };

/* --- generated tables (model.c) ------------------------------------------------------------------------- */

/* In strips: in the arena, with room for a unit of each task of a chain; see chains.c. */
typedef enum { EDM_IN_ARENA, EDM_IN_STRIPS, EDM_IN_WEIGHTS, EDM_AT_INPUT, EDM_AT_OUTPUT } edm_place;

typedef struct {
  uint64_t offset; /* of the first byte in arena or weights; the port's number for inputs and outputs */
  uint32_t shape;  /* where its extents start in the graph's list */
  uint8_t place, code, bits, rank;
} edm_tensor;

typedef struct {
  edm_kernel kernel;
  edm_kernel before; /* of a chain's call: runs once before a task's units of one head, on the same; or NULL */
  uint32_t first; /* its first argument in the graph's list */
  uint8_t inputs, outputs, scratch;
} edm_call;

typedef struct { /* consecutive calls that run together on one unit after another: a head's units are its strips */
  uint32_t first, count, heads, strips;
  uint32_t tasks; /* that share the units */
} edm_chain;

/* Which part of a tensor a call of a chain gets. */
typedef enum { EDM_ALL, EDM_OF_HEAD, EDM_OF_ROWS, EDM_OF_TASK } edm_part;

typedef enum {
  EDM_ROLE_X,
  EDM_ROLE_TIMESTEP,
  EDM_ROLE_LABEL,
  EDM_ROLE_CONDITION,
  EDM_ROLE_HAS_STATE,
  EDM_ROLE_STATE, /* `index` is its number, of inputs and outputs alike */
  EDM_ROLE_ROW,   /* `index` is its byte offset in a row, of prepare's outputs and step's inputs alike */
  EDM_ROLE_OUTPUT
} edm_role;

typedef struct {
  uint64_t bytes;
  uint32_t index;
  uint32_t copy_from; /* outputs: the tensor to copy at the end, or EDM_WRITTEN_IN_PLACE */
  uint8_t role;
} edm_port;

#define EDM_WRITTEN_IN_PLACE UINT32_MAX

typedef struct {
  const edm_tensor *tensors; /* those at inputs and outputs come first */
  const int64_t *extents;
  const edm_call *calls;
  const uint16_t *arguments; /* tensor numbers */
  const edm_port *inputs, *outputs;
  const edm_chain *chains; /* in the order of their calls */
  const uint8_t *parts;    /* of every argument, where there are chains */
  uint32_t chain_count, tensor_count, bound_count, call_count, argument_count, input_count, output_count;
} edm_graph;

typedef enum { EDM_EPSILON, EDM_V_PREDICTION, EDM_SAMPLE } edm_prediction;
typedef enum { EDM_LEADING, EDM_TRAILING, EDM_LINSPACE } edm_spacing;

typedef struct {
  const float *alphas_cumprod;
  int32_t train_timesteps, steps_offset;
  int32_t first_timestep, last_timestep; /* those that the model was trained for */
  int32_t solver_timesteps;              /* DPM-Solver++ uses 0..solver_timesteps-1 */
  float clip;                            /* 0: no clipping */
  uint8_t prediction, spacing, alpha_to_one, large_variance;
  uint8_t solver_order, heun, lower_order_final, euler_at_final, end_at_zero; /* of DPM-Solver++ */
} edm_noise_schedule;

typedef struct { /* of a file; bytes 0: there is none */
  uint64_t bytes;
  uint8_t sha256[32];
} edm_digest;

typedef struct { /* the kernels for one kind of processor, and in which order and on what they run */
  const char *name;
  const char *const *needs;         /* features of the processor, up to NULL */
  edm_graph step, prepare, decoder; /* decoder: no calls where there is none */
  uint64_t arena_bytes, step_arena_bytes; /* for any graph, for step alone */
  edm_digest layers;                /* of the golden data of its calls */
} edm_variant;

typedef struct { /* a piece of the weights */
  uint64_t offset, bytes;
  uint32_t readers; /* bit i: variant i reads it */
  uint8_t sha256[32];
} edm_section;

typedef struct {
  const char *edgedm;          /* its version */
  const edm_variant *variants; /* the most demanding first */
  const edm_section *sections;
  uint32_t variant_count, section_count;
  edm_noise_schedule noise;
  uint64_t weights_bytes, row_bytes, states_bytes;
  const uint64_t *state_offsets; /* within a state buffer */
  const uint64_t *state_bytes;
  edm_digest golden;             /* of the golden data of steps */
  int64_t image_shape[3];   /* of what the sampler draws */
  int64_t decoded_shape[3]; /* zeros: it draws images */
  int64_t condition_shape[2]; /* tokens, their size; zeros: no text condition */
  int64_t classes, null_class; /* classes 0: no class input; null class -1: none */
  uint32_t state_count;
  int32_t default_steps;
  edm_sampler default_sampler;
} edm_description;

extern const edm_description edm_compiled;

/* --- errors.c -------------------------------------------------------------------------------------------- */
edm_status edm_fail(edm_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
edm_status edm_null(const char *function); /* one of its arguments is NULL, and must not be */
edm_status edm_busy(const char *function); /* its session is drawing */
void edm_enter_errors(void);               /* see edm_enter_thread */

/* --- sha256.c -------------------------------------------------------------------------------------------- */
void edm_sha256(const void *data, uint64_t length, uint8_t digest[32]);
/* From where the file stands to its end; false: it cannot be read. */
bool edm_sha256_file(FILE *file, uint8_t digest[32]);

/* --- variants.c ------------------------------------------------------------------------------------------ */
/* The variant of that name; NULL: the one that EDGEDM_FEATURES names, without it the best that this machine runs. */
edm_status edm_pick_variant(const char *name, const edm_variant **picked);
/* Write what the variant needs and this machine lacks, up to `room` bytes; false: nothing, it runs. */
bool edm_variant_lacks(const edm_variant *variant, char *text, size_t room);

/* --- weights.c ------------------------------------------------------------------------------------------- */
/* False: something is there, and no file; opening a pipe would wait. */
bool edm_may_be_read(const char *path);

struct edm_model {
  const edm_variant *variant; /* the one that runs */
  const uint8_t *weights;
  void *mapped, *copied; /* what edm_close gives back */
  size_t mapped_bytes;
};

/* --- cores.c --------------------------------------------------------------------------------------------- */
typedef struct {
  uint64_t words[16]; /* as the Linux kernel takes them: core i is bit i % 64 of word i / 64 */
} edm_core_set;

/* Let this thread run on these cores only, and on those that it could before. */
edm_status edm_enter_cores(const int *cores, int count, edm_core_set *before);
void edm_leave_cores(const edm_core_set *before);

/* --- threads.c ------------------------------------------------------------------------------------------- */
typedef struct edm_pool edm_pool;
/* The pool's own threads run on these cores; core_count 0: on any. */
edm_status edm_pool_create(int threads, const int *cores, int core_count, edm_pool **pool);
void edm_pool_free(edm_pool *pool);
/* Run body(task) for task 0..tasks-1 on the pool's threads, this one included; the first error, or 0. */
int edm_pool_run(edm_pool *pool, edm_parallel_body body, void *closure, int tasks);
/* The pool that kernels called from this thread may use (NULL: none); returns the one before. */
edm_pool *edm_pool_enter(edm_pool *pool);
/* Have the system make this thread's thread-local variables now: of a library that a program loads, and on Android, it
 * asks for their memory at the first use. */
void edm_enter_thread(void);

/* --- graph.c --------------------------------------------------------------------------------------------- */
void edm_enter_kernels(void); /* see edm_enter_thread */
extern EDM_SHARED _Thread_local char edm_kernel_message[256]; /* of this thread's last kernel that failed */

typedef struct { /* a graph with its tensors placed in memory */
  const edm_graph *graph;
  DLTensor *tensors;
  TVMFFIAny *arguments;
} edm_instance;

size_t edm_instance_bytes(const edm_graph *graph);
void edm_instance_init(edm_instance *instance, const edm_graph *graph, void *memory, const uint8_t *weights,
                       uint8_t *arena);
/* Run all calls; `inputs` and `outputs` are one aligned pointer a port. */
edm_status edm_instance_run(edm_instance *instance, void *const *inputs, void *const *outputs);
/* Run one call, which is of no chain, with the tensors where they are. */
edm_status edm_instance_call(edm_instance *instance, uint32_t call);
void edm_instance_bind(edm_instance *instance, void *const *inputs, void *const *outputs);
static inline size_t edm_align(size_t bytes) {
  return (bytes + EDM_ALIGNMENT - 1) / EDM_ALIGNMENT * EDM_ALIGNMENT;
}

/* --- chains.c -------------------------------------------------------------------------------------------- */
/* The chain that the call is of, or NULL. */
const edm_chain *edm_chain_of(const edm_graph *graph, uint32_t call);
/* Run it; `nanoseconds`, one a call, or NULL. */
edm_status edm_chain_run(edm_instance *instance, const edm_chain *chain, uint64_t *nanoseconds);
/* Run one of its calls on all units. What lies between the calls lies whole, where the tensors say. */
edm_status edm_chain_call(edm_instance *instance, const edm_chain *chain, uint32_t call);

/* --- schedule.c, sampler.c ------------------------------------------------------------------------------- */
typedef struct { /* see edgedm/diffusion/steps.py: the same formulas, operation by operation */
  float x0_sample, x0_output, x0_divisor, eps_sample, eps_output, eps_divisor;
  float to_x0, to_eps, to_sample, to_noise, trend_scale, to_trend;
} edm_coefficients;

void edm_choose_timesteps(const edm_noise_schedule *noise, edm_sampler sampler, int steps, int64_t *timesteps);
/* Coefficients of one step of a run whose first executed step is `first`. schedule->timesteps only says whether the
 * caller chose them. */
void edm_step_coefficients(const edm_noise_schedule *noise, const edm_schedule *schedule, const int64_t *timesteps,
                           int first, int step, edm_coefficients *row);
/* x to the next step's; x0 from the estimate of the finished image at the step before to that of this step. */
void edm_advance(const edm_coefficients *row, float clip, const float *output, const float *fresh, uint64_t count,
                 float *x, float *x0);
void edm_guide(const float *conditional, const float *unconditional, float guidance, uint64_t count, float *output);
/* x holds noise, and then the image as it is at `timestep` under that noise. */
void edm_add_noise(const edm_noise_schedule *noise, edm_sampler sampler, int64_t timestep, const float *image,
                   uint64_t count, float *x);

/* --- session.c ------------------------------------------------------------------------------------------- */
enum { EDM_CONDITIONAL = 0, EDM_UNCONDITIONAL = 1, EDM_PASSES = 2 };

typedef struct { /* where a graph finds its inputs and leaves its outputs: one aligned pointer a port */
  void **inputs, **outputs;
} edm_ports;

typedef struct { /* what one image needs while it is drawn */
  edm_instance step;
  edm_ports ports;
  uint8_t *arena;
  uint8_t *states[EDM_PASSES][2]; /* read from one, written to the other */
  int current;                    /* which of the two is read */
  float *x, *x0, *outputs[EDM_PASSES], *noise, *has_state;
  int64_t *timestep, *label;
} edm_lane;

struct edm_session {
  edm_model *model;
  edm_pool *pool;
  edm_instance prepare; /* runs in lane 0's arena */
  edm_ports prepare_ports;
  edm_instance decoder; /* likewise */
  float *latent, *decoded; /* what it reads and writes */
  edm_lane *lanes;
  int lane_count;
  void *memory, *owned; /* owned: to be freed */
  /* what edm_prepare chose; steps 0: nothing yet */
  int steps, passes;
  edm_schedule schedule; /* its timesteps are NULL, or those below */
  float guidance;
  int64_t labels[EDM_PASSES];
  float *texts[EDM_PASSES]; /* text conditions */
  uint8_t *plan; /* one block for the two below */
  size_t plan_bytes;
  uint8_t *rows[EDM_PASSES];
  int64_t *timesteps;
  bool busy; /* edm_sample runs, and may be asking its callback */
  /* what edm_begin began, in lane 0 */
  bool drawing;
  int first, next; /* steps */
  edm_sample_options drawn;
};

/* The model's output (guided) for lane->x at `step`, in lane->outputs[EDM_CONDITIONAL]. */
edm_status edm_lane_step(const edm_session *session, edm_lane *lane, int step);
void edm_lane_reset(edm_lane *lane);
/* Point the step graph's inputs and outputs at the lane's memory, for one pass of one step. */
void edm_lane_bind(const edm_session *session, edm_lane *lane, int pass, int step);
uint64_t edm_image_floats(void);

/* --- conditions.c, decode.c ------------------------------------------------------------------------------ */
/* Check and keep the conditions of all steps to come. */
edm_status edm_choose_conditions(edm_session *session, const edm_conditions *wanted);
uint64_t edm_condition_floats(void);
uint64_t edm_decoded_floats(void);

/* --- images.c -------------------------------------------------------------------------------------------- */
/* Whether `count` images of this shape can be written under this name; drawing them may take long. */
edm_status edm_check_output(const char *path, uint32_t count, const int64_t shape[3]);

/* --- drawing.c ------------------------------------------------------------------------------------------- */
/* The step that a run with these options begins with: 0, or a later one where it starts from an image. */
edm_status edm_first_step(const edm_session *session, const edm_sample_options *options, int *first);
/* Whether `images` images can be drawn with these options: their numbers and what they start from. */
edm_status edm_check_drawing(const edm_sample_options *options, uint32_t images);
/* Image `index` of the options, in a lane: its beginning, and one step of it. */
void edm_begin_image(const edm_session *session, edm_lane *lane, const edm_sample_options *options, uint32_t index,
                     int first);
edm_status edm_step_image(const edm_session *session, edm_lane *lane, const edm_sample_options *options,
                          uint32_t index, int first, int step);

/* --- probe.c --------------------------------------------------------------------------------------------- */
size_t edm_tensor_bytes(const edm_graph *graph, const edm_tensor *tensor);
uint64_t edm_nanoseconds(void);

#endif
