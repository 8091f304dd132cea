/* edgedm-probe: this bundle behind a pipe, for whoever examines it from another program (`edgedm verify`).
 *
 *   edgedm-probe WEIGHTS [THREADS [LANES [VARIANT]]]
 *
 * A request on standard input is {u32 command, u32 0, u64 bytes} and as many bytes of payload, in the layout of the
 * struct of its name and the arrays that follow; an answer on standard output is {u32 edm_status, u32 0, u64 bytes}
 * and either the result or, if the status is not EDM_OK, the message. The first answer, to no request, tells
 * whether the weights could be opened: "EDMPROB2" and the name of the variant that runs. The end of standard input ends
 * the program. Everything is little endian. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

#ifndef EDM_PROBE
#error "this program runs single calls of the model: compile it and the library with -DEDM_PROBE"
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays travel as they lie in memory");

enum { FAILED = 2 };
static const char ready[] = "EDMPROB2";

typedef enum {
  PREPARE = 1,
  STEP,
  RESET,
  STATE_READ,
  STATE_WRITE,
  SAMPLE,
  NORMALS,
  RUN_NODE,
  LEND,
  PROFILE,
  DECODE
} command;

typedef struct {
  uint32_t number, zero; /* the command, or the status of the answer */
  uint64_t bytes;
} frame;

typedef struct { /* then the timesteps, if given, and those text conditions that are */
  int32_t steps, sampler;
  double eta;
  int64_t label;
  float guidance;
  uint32_t given, texts, zero; /* texts: 1 the condition, 2 the negative one */
} prepare_request;

typedef struct { /* then x; of a profile, too */
  int32_t step, zero;
} step_request;

typedef struct { /* then the images to start from, if any */
  uint64_t seed;
  uint32_t first_image, images;
  double strength;
} sample_request;

typedef struct {
  uint64_t seed;
  uint32_t image, draw;
  uint64_t count;
} normals_request;

typedef struct { /* then the non-constant inputs */
  int32_t call;
  char graph[12];
} node_request;

typedef struct { /* then the bytes that the kernels shall find there instead */
  uint64_t offset;
} lend_request;

typedef struct {
  edm_model *model;
  edm_session *session;
  uint8_t *weights;
  uint8_t *request, *answer; /* payloads */
  uint64_t request_bytes, answer_bytes, request_room, answer_room;
} server;

/* --- payloads -------------------------------------------------------------------------------------------- */

static edm_status reserve(uint8_t **block, uint64_t *room, uint64_t bytes) {
  if (*block && bytes <= *room) return EDM_OK;
  free(*block);
  *room = 0;
  *block = bytes <= SIZE_MAX / 2 ? aligned_alloc(EDM_ALIGNMENT, edm_align((size_t)bytes + 1)) : NULL;
  if (!*block) return edm_fail(EDM_NO_MEMORY, "no memory for %llu bytes", (unsigned long long)bytes);
  *room = bytes;
  return EDM_OK;
}

static edm_status answer(server *it, uint64_t bytes) {
  edm_status status = reserve(&it->answer, &it->answer_room, bytes);
  it->answer_bytes = status ? 0 : bytes;
  return status;
}

/* Copy the struct at the start of the request; `rest` bytes must follow it. */
static edm_status take(const server *it, void *fixed, size_t bytes, uint64_t rest) {
  if (it->request_bytes != bytes + rest)
    return edm_fail(EDM_BAD_ARGUMENT, "a request of %llu bytes, expected %llu", (unsigned long long)it->request_bytes,
                    (unsigned long long)(bytes + rest));
  memcpy(fixed, it->request, bytes);
  return EDM_OK;
}

/* Bytes of the request after a struct at its start; a request that is too short for it is refused by `take`. */
static uint64_t rest_after(const server *it, size_t bytes) {
  return it->request_bytes >= bytes ? it->request_bytes - bytes : 0;
}

static uint64_t image_bytes(void) { return edm_image_floats() * sizeof(float); }

static uint64_t all_states_bytes(void) {
  uint64_t bytes = 0;
  for (int i = 0; i < edm_state_count(); ++i) bytes += edm_state_bytes(i);
  return bytes;
}

/* --- commands -------------------------------------------------------------------------------------------- */

static edm_status prepare(server *it) {
  prepare_request wanted;
  uint64_t rest = rest_after(it, sizeof wanted);
  edm_status status = take(it, &wanted, sizeof wanted, rest);
  if (status) return status;
  uint64_t text_bytes = edm_condition_floats() * sizeof(float), texts = (wanted.texts & 1) + (wanted.texts >> 1 & 1);
  uint64_t timesteps = wanted.given && wanted.steps > 0 ? (uint64_t)wanted.steps * sizeof(int64_t) : 0;
  if (wanted.steps < 0 || rest != timesteps + texts * text_bytes)
    return edm_fail(EDM_BAD_ARGUMENT, "%d timesteps and %llu conditions in %llu bytes", wanted.steps,
                    (unsigned long long)texts, (unsigned long long)rest);
  edm_schedule schedule = {.steps = wanted.steps, .sampler = (edm_sampler)wanted.sampler, .eta = wanted.eta};
  if (wanted.given) schedule.timesteps = (const int64_t *)(const void *)(it->request + sizeof wanted);
  edm_conditions conditions = {.label = wanted.label, .guidance = wanted.guidance};
  const float *text = (const float *)(const void *)(it->request + sizeof wanted + timesteps);
  if (wanted.texts & 1) conditions.encoder_hidden_states = text;
  if (wanted.texts & 2) conditions.negative_encoder_hidden_states = text + (texts - 1) * edm_condition_floats();
  status = edm_prepare(it->session, &schedule, &conditions);
  if (!status) status = answer(it, (uint64_t)wanted.steps * sizeof(int64_t));
  return status ? status : edm_timesteps(it->session, (int64_t *)(void *)it->answer);
}

static edm_status step(server *it) {
  step_request wanted;
  edm_status status = take(it, &wanted, sizeof wanted, image_bytes());
  if (!status) status = answer(it, image_bytes());
  const float *x = (const float *)(const void *)(it->request + sizeof wanted);
  return status ? status : edm_step(it->session, wanted.step, x, (float *)(void *)it->answer);
}

static edm_status profile(server *it) {
  step_request wanted;
  edm_status status = take(it, &wanted, sizeof wanted, image_bytes());
  if (!status) status = answer(it, (uint64_t)edm_call_count(it->session) * sizeof(uint64_t));
  const float *x = (const float *)(const void *)(it->request + sizeof wanted);
  return status ? status : edm_profile(it->session, wanted.step, x, (uint64_t *)(void *)it->answer);
}

static edm_status decode(server *it) {
  uint8_t none;
  edm_status status = take(it, &none, 0, image_bytes());
  if (!status) status = answer(it, edm_decoded_floats() * sizeof(float));
  const float *latent = (const float *)(const void *)it->request;
  return status ? status : edm_decode(it->session, latent, (float *)(void *)it->answer);
}

static edm_status read_states(server *it) {
  edm_status status = answer(it, all_states_bytes());
  uint8_t *to = it->answer;
  for (int i = 0; i < edm_state_count() && !status; to += edm_state_bytes(i++))
    status = edm_state_read(it->session, i, to);
  return status;
}

static edm_status write_states(server *it) {
  uint8_t none;
  edm_status status = take(it, &none, 0, all_states_bytes());
  const uint8_t *from = it->request;
  for (int i = 0; i < edm_state_count() && !status; from += edm_state_bytes(i++))
    status = edm_state_write(it->session, i, from);
  return status;
}

static edm_status sample(server *it) {
  sample_request wanted;
  uint64_t rest = rest_after(it, sizeof wanted);
  edm_status status = take(it, &wanted, sizeof wanted, rest);
  if (!status && rest && rest != wanted.images * image_bytes())
    status = edm_fail(EDM_BAD_ARGUMENT, "%llu bytes of images to start from", (unsigned long long)rest);
  if (!status) status = answer(it, wanted.images * image_bytes());
  if (status) return status;
  edm_sample_options draw = {.seed = wanted.seed, .first_image = wanted.first_image, .images = wanted.images};
  if (rest) draw.start = (const float *)(const void *)(it->request + sizeof wanted), draw.strength = wanted.strength;
  return edm_sample(it->session, &draw, (float *)(void *)it->answer, NULL, NULL);
}

static edm_status normals(server *it) {
  normals_request wanted;
  edm_status status = take(it, &wanted, sizeof wanted, 0);
  if (!status) status = answer(it, wanted.count <= UINT32_MAX ? wanted.count * sizeof(float) : UINT64_MAX);
  if (!status) edm_normals(wanted.seed, wanted.image, wanted.draw, wanted.count, (float *)(void *)it->answer);
  return status;
}

static edm_status call_node(server *it, const node_request *wanted, const edm_graph *graph) {
  const edm_call *call = &graph->calls[wanted->call];
  const uint16_t *arguments = graph->arguments + call->first;
  const void *inputs[UINT8_MAX + 1];
  void *outputs[UINT8_MAX + 1];
  uint64_t used = 0, made = 0;
  for (int i = 0, given = 0; i < call->inputs; ++i) {
    const edm_tensor *tensor = &graph->tensors[arguments[i]];
    if (tensor->place == EDM_IN_WEIGHTS) continue;
    inputs[given++] = it->request + sizeof *wanted + used;
    used += edm_tensor_bytes(graph, tensor);
  }
  if (it->request_bytes - sizeof *wanted != used)
    return edm_fail(EDM_BAD_ARGUMENT, "call %d: expected %llu bytes of inputs", wanted->call, (unsigned long long)used);
  for (int i = 0; i < call->outputs; ++i) made += edm_tensor_bytes(graph, &graph->tensors[arguments[call->inputs + i]]);
  edm_status status = answer(it, made);
  if (status) return status;
  uint8_t *next = it->answer;
  for (int i = 0; i < call->outputs; ++i) {
    outputs[i] = next;
    next += edm_tensor_bytes(graph, &graph->tensors[arguments[call->inputs + i]]);
  }
  return edm_run_node(it->session, wanted->graph, wanted->call, inputs, outputs);
}

static const edm_graph *find_graph(const server *it, const char *name) {
  const edm_variant *variant = it->model->variant;
  if (strcmp(name, "step") == 0) return &variant->step;
  if (strcmp(name, "decoder") == 0) return &variant->decoder;
  return strcmp(name, "prepare") == 0 ? &variant->prepare : NULL;
}

static edm_status run_node(server *it) {
  node_request wanted;
  uint64_t rest = rest_after(it, sizeof wanted);
  edm_status status = take(it, &wanted, sizeof wanted, rest);
  if (status) return status;
  wanted.graph[sizeof wanted.graph - 1] = 0;
  const edm_graph *graph = find_graph(it, wanted.graph);
  if (!graph || wanted.call < 0 || (uint32_t)wanted.call >= graph->call_count)
    return edm_fail(EDM_BAD_ARGUMENT, "graph \"%s\" has no call %d", wanted.graph, wanted.call);
  return call_node(it, &wanted, graph);
}

static edm_status lend(server *it) {
  lend_request wanted = {0};
  uint64_t rest = rest_after(it, sizeof wanted);
  edm_status status = take(it, &wanted, sizeof wanted, rest);
  if (status) return status;
  if (wanted.offset > edm_compiled.weights_bytes || rest > edm_compiled.weights_bytes - wanted.offset)
    return edm_fail(EDM_BAD_ARGUMENT, "%llu bytes at %llu lie beyond the weights", (unsigned long long)rest,
                    (unsigned long long)wanted.offset);
  if (rest) memcpy(it->weights + wanted.offset, it->request + sizeof wanted, (size_t)rest);
  return EDM_OK;
}

static edm_status obey(server *it, uint32_t number) {
  it->answer_bytes = 0;
  switch ((command)number) {
    case PREPARE: return prepare(it);
    case STEP: return step(it);
    case RESET: return edm_reset(it->session);
    case STATE_READ: return read_states(it);
    case STATE_WRITE: return write_states(it);
    case SAMPLE: return sample(it);
    case NORMALS: return normals(it);
    case RUN_NODE: return run_node(it);
    case LEND: return lend(it);
    case PROFILE: return profile(it);
    case DECODE: return decode(it);
  }
  return edm_fail(EDM_BAD_ARGUMENT, "there is no command %u", number);
}

/* --- the program ----------------------------------------------------------------------------------------- */

static bool tell(edm_status status, const void *result, uint64_t bytes) {
  const void *payload = status ? edm_last_error() : result;
  frame head = {(uint32_t)status, 0, status ? strlen(edm_last_error()) : bytes};
  return fwrite(&head, 1, sizeof head, stdout) == sizeof head &&
         fwrite(payload, 1, (size_t)head.bytes, stdout) == head.bytes && fflush(stdout) == 0;
}

static bool serve(server *it) {
  frame head;
  while (fread(&head, 1, sizeof head, stdin) == sizeof head) {
    edm_status status = reserve(&it->request, &it->request_room, head.bytes);
    if (status) {
      tell(status, NULL, 0);
      return false; /* the payload cannot be skipped */
    }
    if (fread(it->request, 1, (size_t)head.bytes, stdin) != head.bytes) return false;
    it->request_bytes = head.bytes;
    status = obey(it, head.number);
    if (!tell(status, it->answer, it->answer_bytes)) return false;
  }
  return true;
}

/* Read the weights into memory of ours, which `lend` may change after their hash was checked. */
static edm_status read_weights(server *it, const char *path) {
  uint64_t bytes = edm_compiled.weights_bytes;
  it->weights = aligned_alloc(EDM_ALIGNMENT, edm_align((size_t)bytes + 1));
  if (!it->weights) return edm_fail(EDM_NO_MEMORY, "no memory for the weights");
  FILE *file = fopen(path, "rb");
  if (!file) return edm_fail(EDM_BAD_FILE, "%s: %s", path, strerror(errno));
  bool whole = fread(it->weights, 1, (size_t)bytes, file) == bytes;
  fclose(file);
  return whole ? EDM_OK : edm_fail(EDM_BAD_FILE, "%s: expected %llu bytes", path, (unsigned long long)bytes);
}

static edm_status begin(server *it, int count, char **arguments) {
  if (count < 2) return edm_fail(EDM_BAD_ARGUMENT, "usage: edgedm-probe WEIGHTS [THREADS [LANES [VARIANT]]]");
  edm_session_options options = {.threads = count > 2 ? atoi(arguments[2]) : 1,
                                 .lanes = count > 3 ? atoi(arguments[3]) : 0};
  edm_status status = read_weights(it, arguments[1]);
  edm_source source = {.memory = it->weights, .length = edm_compiled.weights_bytes};
  if (count > 4) source.variant = arguments[4];
  if (!status) status = edm_open(&source, &it->model);
  if (!status) status = edm_session_create(it->model, &options, &it->session);
  const char *variant = status ? "" : edm_model_variant(it->model);
  size_t length = strlen(variant);
  if (!status) status = answer(it, sizeof ready - 1 + length);
  if (status) return status;
  memcpy(it->answer, ready, sizeof ready - 1);
  memcpy(it->answer + sizeof ready - 1, variant, length);
  return EDM_OK;
}

int main(int count, char **arguments) {
  server it = {0};
  edm_status status = begin(&it, count, arguments);
  bool done = tell(status, it.answer, it.answer_bytes) && !status && serve(&it);
  edm_session_free(it.session);
  edm_close(it.model);
  free(it.weights);
  free(it.request);
  free(it.answer);
  return done ? 0 : FAILED;
}
