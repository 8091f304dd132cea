/* A session: memory for one or more lanes, the prepared schedule, one step of the model. */
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "runtime.h"

uint64_t edm_image_floats(void) {
  const int64_t *shape = edm_compiled.image_shape;
  return (uint64_t)(shape[0] * shape[1] * shape[2]);
}

void edm_image_shape(int64_t shape[3]) { memcpy(shape, edm_compiled.image_shape, sizeof edm_compiled.image_shape); }

/* --- memory: one block, cut into aligned pieces in a fixed order ----------------------------------------- */

/* No object is larger, not where size_t has 32 bits either; a block that would be counts as this. */
#define MOST_BYTES (SIZE_MAX / 2 / EDM_ALIGNMENT * EDM_ALIGNMENT)

typedef struct {
  uint8_t *base; /* NULL: only count */
  size_t used;   /* up to MOST_BYTES */
} cutter;

static void *cut(cutter *block, uint64_t bytes) {
  uint8_t *piece = block->base ? block->base + block->used : NULL;
  if (bytes < MOST_BYTES - block->used) block->used += edm_align((size_t)bytes);
  else block->used = MOST_BYTES;
  return piece;
}

static edm_ports cut_ports(cutter *block, const edm_graph *graph) {
  edm_ports ports = {NULL, NULL};
  ports.inputs = cut(block, graph->input_count * sizeof *ports.inputs);
  ports.outputs = cut(block, graph->output_count * sizeof *ports.outputs);
  return ports;
}

static void lay_out(edm_session *session, const edm_variant *it, cutter *block, int lanes, edm_lane *lane_table,
                    const uint8_t *weights) {
  uint64_t image_bytes = edm_image_floats() * sizeof(float);
  for (int i = 0; i < lanes; ++i) {
    edm_lane lane = {0};
    lane.arena = cut(block, i == 0 ? it->arena_bytes : it->step_arena_bytes); /* prepare and decoder run in the first */
    void *tables = cut(block, edm_instance_bytes(&it->step));
    lane.ports = cut_ports(block, &it->step);
    for (int pass = 0; pass < EDM_PASSES; ++pass) {
      lane.states[pass][0] = cut(block, edm_compiled.states_bytes);
      lane.states[pass][1] = cut(block, edm_compiled.states_bytes);
      lane.outputs[pass] = cut(block, image_bytes);
    }
    lane.x = cut(block, image_bytes);
    lane.x0 = cut(block, image_bytes);
    lane.noise = cut(block, image_bytes);
    lane.has_state = cut(block, sizeof(float));
    lane.timestep = cut(block, sizeof(int64_t));
    lane.label = cut(block, sizeof(int64_t));
    if (!block->base) continue;
    edm_instance_init(&lane.step, &it->step, tables, weights, lane.arena);
    lane_table[i] = lane;
    edm_lane_reset(&lane_table[i]);
  }
  void *tables = cut(block, edm_instance_bytes(&it->prepare));
  edm_ports ports = cut_ports(block, &it->prepare);
  float *texts[EDM_PASSES];
  for (int pass = 0; pass < EDM_PASSES; ++pass) texts[pass] = cut(block, edm_condition_floats() * sizeof(float));
  void *decoder_tables = cut(block, edm_instance_bytes(&it->decoder));
  bool decodes = edm_decoded_floats() > 0;
  float *latent = cut(block, decodes ? image_bytes : 0), *decoded = cut(block, edm_decoded_floats() * sizeof(float));
  if (!block->base) return;
  session->prepare_ports = ports;
  session->latent = latent, session->decoded = decoded;
  memcpy(session->texts, texts, sizeof texts);
  edm_instance_init(&session->prepare, &it->prepare, tables, weights, lane_table[0].arena);
  edm_instance_init(&session->decoder, &it->decoder, decoder_tables, weights, lane_table[0].arena);
}

static int threads_of(const edm_session_options *options) { return options->threads > 0 ? options->threads : 1; }

static int lanes_of(const edm_session_options *options) {
  if (threads_of(options) == 1) return 1;
  return options->lanes > 0 ? options->lanes : threads_of(options);
}

static size_t bytes_of(const edm_variant *variant, const edm_session_options *options) {
  cutter block = {NULL, 0};
  lay_out(NULL, variant, &block, lanes_of(options), NULL, NULL);
  return block.used;
}

enum { MOST_THREADS = 1024 }; /* and lanes */

static bool may_be(const edm_session_options *options) {
  return options->threads >= 0 && options->threads <= MOST_THREADS && options->lanes >= 0 &&
         options->lanes <= MOST_THREADS;
}

size_t edm_session_bytes(const edm_session_options *options) {
  size_t most = 0;
  if (!options || !may_be(options)) return 0; /* edm_session_create says why */
  for (uint32_t i = 0; i < edm_compiled.variant_count; ++i) {
    size_t bytes = bytes_of(&edm_compiled.variants[i], options);
    if (bytes > most) most = bytes;
  }
  return most;
}

enum { HUGE_PAGE = 2 << 20 };

/* Huge pages where the system gives them: a step goes through all of this memory, and carried state, which no cache
   near the core still holds, then takes half of the time to read and write. The part behind the last of them stays as
   it is, so that no more becomes resident than is used. */
static void *allocate_pages(size_t bytes) {
#ifdef MADV_HUGEPAGE
  void *memory = NULL;
  if (bytes >= HUGE_PAGE) {
    if (posix_memalign(&memory, HUGE_PAGE, bytes)) return NULL;
    (void)madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return memory;
  }
#endif
  return aligned_alloc(EDM_ALIGNMENT, bytes);
}

edm_status edm_session_create(edm_model *model, const edm_session_options *options, edm_session **created) {
  if (created) *created = NULL;
  if (!model || !options || !created) return edm_null("edm_session_create");
  edm_enter_thread();
  if (!may_be(options))
    return edm_fail(EDM_BAD_ARGUMENT, "threads and lanes: expected 0..%d, got %d and %d", MOST_THREADS,
                    options->threads, options->lanes);
  if (options->core_count < 0 || (options->core_count > 0 && !options->cores))
    return edm_fail(EDM_BAD_ARGUMENT, "cores: expected a list and its length, got length %d", options->core_count);
  if ((uintptr_t)options->memory % EDM_ALIGNMENT)
    return edm_fail(EDM_BAD_ARGUMENT, "session memory: expected 64-byte alignment");
  edm_session *session = calloc(1, sizeof *session);
  if (!session) return edm_fail(EDM_NO_MEMORY, "no memory for a session");
  size_t bytes = bytes_of(model->variant, options);
  if (bytes == MOST_BYTES) {
    free(session);
    return edm_fail(EDM_NO_MEMORY, "no memory for a session: it needs more than this machine can address");
  }
  session->model = model;
  session->lane_count = lanes_of(options);
  session->lanes = calloc((size_t)session->lane_count, sizeof *session->lanes);
  if (!options->memory) session->owned = allocate_pages(bytes);
  cutter block = {options->memory ? options->memory : session->owned, 0};
  if (!session->lanes || !block.base) {
    edm_session_free(session);
    return edm_fail(EDM_NO_MEMORY, "no memory for a session of %zu bytes", bytes);
  }
  lay_out(session, model->variant, &block, session->lane_count, session->lanes, model->weights);
  if (threads_of(options) > 1) {
    edm_status status = edm_pool_create(threads_of(options), options->cores, options->core_count, &session->pool);
    if (status) {
      edm_session_free(session);
      return status;
    }
  }
  *created = session;
  return EDM_OK;
}

void edm_session_free(edm_session *session) {
  if (!session) return;
  edm_pool_free(session->pool);
  free(session->plan);
  free(session->owned);
  free(session->lanes);
  free(session);
}

/* --- prepare --------------------------------------------------------------------------------------------- */

static edm_status check_timesteps(const int64_t *timesteps, int steps, bool chosen) {
  const edm_noise_schedule *noise = &edm_compiled.noise;
  for (int i = 0; i < steps; ++i) {
    if (timesteps[i] < noise->first_timestep || timesteps[i] > noise->last_timestep)
      return edm_fail(EDM_BAD_ARGUMENT,
                      "step %d of %d has timestep %lld, outside the trained %d..%d: choose another number of steps", i,
                      steps, (long long)timesteps[i], noise->first_timestep, noise->last_timestep);
    if (i > 0 && timesteps[i] >= timesteps[i - 1])
      return edm_fail(EDM_BAD_ARGUMENT, "timesteps %lld, %lld (steps %d, %d of %d): expected descending ones%s",
                      (long long)timesteps[i - 1], (long long)timesteps[i], i - 1, i, steps,
                      chosen ? "; choose fewer steps" : "");
  }
  return EDM_OK;
}

static edm_status reserve_plan(edm_session *session, int steps) {
  size_t count = (size_t)steps;
  for (int counting = 1; counting >= 0; --counting) {
    cutter block = {counting ? NULL : session->plan, 0};
    for (int pass = 0; pass < EDM_PASSES; ++pass) session->rows[pass] = cut(&block, count * edm_compiled.row_bytes);
    session->timesteps = cut(&block, count * sizeof *session->timesteps);
    if (counting && block.used > session->plan_bytes) {
      free(session->plan);
      session->plan_bytes = 0;
      session->plan = block.used < MOST_BYTES ? aligned_alloc(EDM_ALIGNMENT, block.used) : NULL;
      if (!session->plan) return edm_fail(EDM_NO_MEMORY, "no memory to prepare %d steps", steps);
      session->plan_bytes = block.used;
    }
  }
  return EDM_OK;
}

static edm_status prepare_row(edm_session *session, int pass, int step) {
  const edm_graph *graph = session->prepare.graph;
  edm_lane *lane = &session->lanes[0];
  edm_ports ports = session->prepare_ports;
  *lane->timestep = session->timesteps[step];
  *lane->label = session->labels[pass];
  for (uint32_t i = 0; i < graph->input_count; ++i) {
    uint8_t role = graph->inputs[i].role;
    ports.inputs[i] = role == EDM_ROLE_TIMESTEP ? (void *)lane->timestep
                      : role == EDM_ROLE_LABEL  ? (void *)lane->label
                                                : (void *)session->texts[pass];
  }
  for (uint32_t i = 0; i < graph->output_count; ++i)
    ports.outputs[i] = session->rows[pass] + (size_t)step * edm_compiled.row_bytes + graph->outputs[i].index;
  return edm_instance_run(&session->prepare, ports.inputs, ports.outputs);
}

static edm_status plan_steps(edm_session *session, const edm_schedule *schedule) {
  edm_status status = reserve_plan(session, schedule->steps);
  if (status) return status;
  if (schedule->timesteps)
    memcpy(session->timesteps, schedule->timesteps, (size_t)schedule->steps * sizeof *session->timesteps);
  else
    edm_choose_timesteps(&edm_compiled.noise, schedule->sampler, schedule->steps, session->timesteps);
  status = check_timesteps(session->timesteps, schedule->steps, !schedule->timesteps);
  if (status) return status;
  edm_pool *before = edm_pool_enter(session->pool);
  for (int pass = 0; pass < session->passes && !status; ++pass)
    for (int step = 0; step < schedule->steps && !status; ++step) status = prepare_row(session, pass, step);
  edm_pool_enter(before);
  return status;
}

edm_status edm_prepare(edm_session *session, const edm_schedule *schedule, const edm_conditions *conditions) {
  if (!session || !schedule || !conditions) return edm_null("edm_prepare");
  if (session->busy) return edm_busy("edm_prepare");
  edm_enter_thread();
  session->steps = 0;
  session->drawing = false;
  if (schedule->steps < 1 || schedule->steps > edm_compiled.noise.train_timesteps)
    return edm_fail(EDM_BAD_ARGUMENT, "steps: expected 1..%d, got %d", edm_compiled.noise.train_timesteps,
                    schedule->steps);
  if (schedule->sampler != EDM_DDIM && schedule->sampler != EDM_DDPM && schedule->sampler != EDM_DPM_SOLVER_PP)
    return edm_fail(EDM_BAD_ARGUMENT, "sampler: expected EDM_DDIM, EDM_DDPM or EDM_DPM_SOLVER_PP, got %d",
                    (int)schedule->sampler);
  if (!(schedule->eta >= 0.0 && schedule->eta <= 1.0))
    return edm_fail(EDM_BAD_ARGUMENT, "eta: expected 0..1, got %g", schedule->eta);
  if (schedule->eta > 0.0 && schedule->sampler != EDM_DDIM)
    return edm_fail(EDM_BAD_ARGUMENT, "eta: expected 0 where the sampler is not EDM_DDIM, got %g", schedule->eta);
  edm_status status = edm_choose_conditions(session, conditions);
  if (!status) status = plan_steps(session, schedule);
  if (status) return status;
  session->steps = schedule->steps;
  session->schedule = *schedule;
  session->schedule.timesteps = schedule->timesteps ? session->timesteps : NULL; /* the caller's may go */
  return edm_reset(session);
}

edm_status edm_timesteps(const edm_session *session, int64_t *timesteps) {
  if (!session || !timesteps) return edm_null("edm_timesteps");
  if (!session->steps) return edm_fail(EDM_BAD_ARGUMENT, "edm_timesteps before edm_prepare");
  memcpy(timesteps, session->timesteps, (size_t)session->steps * sizeof *timesteps);
  return EDM_OK;
}

/* --- one step -------------------------------------------------------------------------------------------- */

void edm_lane_reset(edm_lane *lane) {
  *lane->has_state = 0.0F;
  lane->current = 0;
  for (int pass = 0; pass < EDM_PASSES; ++pass) memset(lane->states[pass][0], 0, (size_t)edm_compiled.states_bytes);
}

static void *input_of(const edm_session *session, edm_lane *lane, int pass, int step, const edm_port *port) {
  switch (port->role) {
    case EDM_ROLE_X: return lane->x;
    case EDM_ROLE_TIMESTEP: return lane->timestep;
    case EDM_ROLE_LABEL: return lane->label;
    case EDM_ROLE_HAS_STATE: return lane->has_state;
    case EDM_ROLE_STATE: return lane->states[pass][lane->current] + edm_compiled.state_offsets[port->index];
    default: return session->rows[pass] + (size_t)step * edm_compiled.row_bytes + port->index;
  }
}

/* Fill lane->ports for this pass of this step. */
static void find_ports(const edm_session *session, edm_lane *lane, int pass, int step) {
  const edm_graph *graph = lane->step.graph;
  *lane->timestep = session->timesteps[step];
  *lane->label = session->labels[pass];
  for (uint32_t i = 0; i < graph->input_count; ++i)
    lane->ports.inputs[i] = input_of(session, lane, pass, step, &graph->inputs[i]);
  for (uint32_t i = 0; i < graph->output_count; ++i) {
    const edm_port *port = &graph->outputs[i];
    uint8_t *next = lane->states[pass][1 - lane->current];
    lane->ports.outputs[i] = port->role == EDM_ROLE_OUTPUT ? (void *)lane->outputs[pass]
                                                           : next + edm_compiled.state_offsets[port->index];
  }
}

void edm_lane_bind(const edm_session *session, edm_lane *lane, int pass, int step) {
  find_ports(session, lane, pass, step);
  edm_instance_bind(&lane->step, lane->ports.inputs, lane->ports.outputs);
}

edm_status edm_lane_step(const edm_session *session, edm_lane *lane, int step) {
  for (int pass = 0; pass < session->passes; ++pass) {
    find_ports(session, lane, pass, step);
    edm_status status = edm_instance_run(&lane->step, lane->ports.inputs, lane->ports.outputs);
    if (status) return status;
  }
  lane->current = 1 - lane->current;
  *lane->has_state = 1.0F;
  if (session->passes == EDM_PASSES) {
    float *output = lane->outputs[EDM_CONDITIONAL];
    edm_guide(output, lane->outputs[EDM_UNCONDITIONAL], session->guidance, edm_image_floats(), output);
  }
  return EDM_OK;
}

edm_status edm_step(edm_session *session, int step, const float *x, float *output) {
  if (!session || !x || !output) return edm_null("edm_step");
  if (session->busy) return edm_busy("edm_step");
  if (!session->steps) return edm_fail(EDM_BAD_ARGUMENT, "edm_step before edm_prepare");
  if (step < 0 || step >= session->steps)
    return edm_fail(EDM_BAD_ARGUMENT, "step: expected 0..%d of the prepared schedule, got %d", session->steps - 1,
                    step);
  edm_lane *lane = &session->lanes[0];
  size_t bytes = (size_t)edm_image_floats() * sizeof(float);
  session->drawing = false;
  memcpy(lane->x, x, bytes);
  edm_pool *before = edm_pool_enter(session->pool);
  edm_status status = edm_lane_step(session, lane, step);
  edm_pool_enter(before);
  if (!status) memcpy(output, lane->outputs[EDM_CONDITIONAL], bytes);
  return status;
}

edm_status edm_reset(edm_session *session) {
  if (!session) return edm_null("edm_reset");
  if (session->busy) return edm_busy("edm_reset");
  session->drawing = false;
  for (int i = 0; i < session->lane_count; ++i) edm_lane_reset(&session->lanes[i]);
  return EDM_OK;
}

/* --- carried state --------------------------------------------------------------------------------------- */

int edm_state_count(void) { return (int)edm_compiled.state_count; }

uint64_t edm_state_bytes(int state) {
  return state >= 0 && state < edm_state_count() ? edm_compiled.state_bytes[state] : 0;
}

static edm_status find_state(const edm_session *session, int state, uint8_t **data) {
  if (state < 0 || state >= edm_state_count())
    return edm_fail(EDM_BAD_ARGUMENT, "state: expected 0..%d, got %d", edm_state_count() - 1, state);
  const edm_lane *lane = &session->lanes[0];
  *data = lane->states[EDM_CONDITIONAL][lane->current] + edm_compiled.state_offsets[state];
  return EDM_OK;
}

edm_status edm_state_read(const edm_session *session, int state, void *data) {
  uint8_t *from = NULL;
  if (!session || !data) return edm_null("edm_state_read");
  if (session->busy) return edm_busy("edm_state_read");
  edm_status status = find_state(session, state, &from);
  if (!status) memcpy(data, from, (size_t)edm_compiled.state_bytes[state]);
  return status;
}

edm_status edm_state_write(edm_session *session, int state, const void *data) {
  uint8_t *to = NULL;
  if (!session || !data) return edm_null("edm_state_write");
  if (session->busy) return edm_busy("edm_state_write");
  edm_status status = find_state(session, state, &to);
  if (status) return status;
  session->drawing = false;
  memcpy(to, data, (size_t)edm_compiled.state_bytes[state]);
  *session->lanes[0].has_state = 1.0F;
  return EDM_OK;
}
