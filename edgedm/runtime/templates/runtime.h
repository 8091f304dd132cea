/* Inside the runtime: the tables that the compiler generates (model.c) and what the parts share. */
#ifndef EDM_RUNTIME_H
#define EDM_RUNTIME_H

#include <stdbool.h>

#include "edgedm.h"
#include "kernel_abi.h"

enum { EDM_ALIGNMENT = 64 };

/* --- generated tables (model.c) ------------------------------------------------------------------------- */

typedef enum { EDM_IN_ARENA, EDM_IN_WEIGHTS, EDM_AT_INPUT, EDM_AT_OUTPUT } edm_place;

typedef struct {
  uint64_t offset; /* of the first byte in arena or weights; the port's number for inputs and outputs */
  uint32_t shape;  /* where its extents start in the graph's list */
  uint8_t place, code, bits, rank;
} edm_tensor;

typedef struct {
  edm_kernel kernel;
  uint32_t first; /* its first argument in the graph's list */
  uint8_t inputs, outputs, scratch;
} edm_call;

typedef enum {
  EDM_ROLE_X,
  EDM_ROLE_TIMESTEP,
  EDM_ROLE_LABEL,
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
  uint32_t tensor_count, bound_count, call_count, argument_count, input_count, output_count;
} edm_graph;

typedef enum { EDM_EPSILON, EDM_V_PREDICTION, EDM_SAMPLE } edm_prediction;
typedef enum { EDM_LEADING, EDM_TRAILING, EDM_LINSPACE } edm_spacing;

typedef struct {
  const double *alphas_cumprod;
  int32_t train_timesteps, steps_offset;
  int32_t first_timestep, last_timestep; /* those that the model was trained for */
  float clip;                            /* 0: no clipping */
  uint8_t prediction, spacing, alpha_to_one, large_variance;
} edm_noise_schedule;

typedef struct {
  edm_graph step, prepare;
  edm_noise_schedule noise;
  uint64_t arena_bytes, weights_bytes, row_bytes, states_bytes;
  const uint64_t *state_offsets; /* within a state buffer */
  const uint64_t *state_bytes;
  uint8_t weights_sha256[32];
  int64_t image_shape[3];
  int64_t classes, null_class; /* classes 0: no class input; null class -1: none */
  uint32_t state_count;
  int32_t default_steps;
  edm_sampler default_sampler;
} edm_description;

extern const edm_description edm_compiled;

/* --- errors.c -------------------------------------------------------------------------------------------- */
edm_status edm_fail(edm_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- sha256.c -------------------------------------------------------------------------------------------- */
void edm_sha256(const void *data, uint64_t length, uint8_t digest[32]);

/* --- weights.c ------------------------------------------------------------------------------------------- */
struct edm_model {
  const uint8_t *weights;
  void *mapped, *copied; /* what edm_close gives back */
  size_t mapped_bytes;
};

/* --- threads.c ------------------------------------------------------------------------------------------- */
typedef struct edm_pool edm_pool;
edm_status edm_pool_create(int threads, edm_pool **pool);
void edm_pool_free(edm_pool *pool);
/* Run body(task) for task 0..tasks-1 on the pool's threads, this one included; the first error, or 0. */
int edm_pool_run(edm_pool *pool, edm_parallel_body body, void *closure, int tasks);
/* The pool that kernels called from this thread may use (NULL: none); returns the one before. */
edm_pool *edm_pool_enter(edm_pool *pool);

/* --- graph.c --------------------------------------------------------------------------------------------- */
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
/* Run one call with the tensors where they are. */
edm_status edm_instance_call(edm_instance *instance, uint32_t call);
void edm_instance_bind(edm_instance *instance, void *const *inputs, void *const *outputs);
static inline size_t edm_align(size_t bytes) {
  return (bytes + EDM_ALIGNMENT - 1) / EDM_ALIGNMENT * EDM_ALIGNMENT;
}

/* --- schedule.c ------------------------------------------------------------------------------------------ */
typedef struct { /* see edgedm/diffusion/sampler.py: the same formulas, operation by operation */
  float x0_sample, x0_output, eps_sample, eps_output, to_x0, to_eps, to_sample, to_noise;
} edm_coefficients;

edm_status edm_choose_timesteps(const edm_noise_schedule *noise, int steps, int64_t *timesteps);
void edm_step_coefficients(const edm_noise_schedule *noise, const edm_schedule *schedule, const int64_t *timesteps,
                           edm_coefficients *rows);
void edm_advance(const edm_coefficients *row, float clip, const float *output, const float *fresh, uint64_t count,
                 float *x);
void edm_guide(const float *conditional, const float *unconditional, float guidance, uint64_t count, float *output);

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
  float *x, *outputs[EDM_PASSES], *noise, *has_state;
  int64_t *timestep, *label;
} edm_lane;

struct edm_session {
  edm_model *model;
  edm_pool *pool;
  edm_instance prepare; /* runs in lane 0's arena */
  edm_ports prepare_ports;
  edm_lane *lanes;
  int lane_count;
  void *memory, *owned; /* owned: to be freed */
  /* what edm_prepare chose; steps 0: nothing yet */
  int steps, passes;
  float guidance;
  int64_t labels[EDM_PASSES];
  uint8_t *plan; /* one block for the four below */
  size_t plan_bytes;
  uint8_t *rows[EDM_PASSES];
  int64_t *timesteps;
  edm_coefficients *coefficients;
};

/* The model's output (guided) for lane->x at `step`, in lane->outputs[EDM_CONDITIONAL]. */
edm_status edm_lane_step(const edm_session *session, edm_lane *lane, int step);
void edm_lane_reset(edm_lane *lane);
/* Point the step graph's inputs and outputs at the lane's memory, for one pass of one step. */
void edm_lane_bind(const edm_session *session, edm_lane *lane, int pass, int step);
uint64_t edm_image_floats(void);

/* --- probe.c --------------------------------------------------------------------------------------------- */
size_t edm_tensor_bytes(const edm_graph *graph, const edm_tensor *tensor);

/* --- self_test.c (edgedm-sample only) -------------------------------------------------------------------- */
/* Teacher-forced steps over golden data; prints one line each and returns whether all are close enough. */
edm_status edm_self_test(edm_session *session, const char *golden_path, bool *passed);

#endif
