/* Looking inside: one kernel call alone, and how long each one takes. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime.h"

size_t edm_tensor_bytes(const edm_graph *graph, const edm_tensor *tensor) {
  size_t bytes = tensor->bits / 8;
  for (int i = 0; i < tensor->rank; ++i) bytes *= (size_t)graph->extents[tensor->shape + (uint32_t)i];
  return bytes;
}

/* Bytes of what a call reads and writes of a chain's strips, or, with a block, their places in it; it lies there whole. */
static size_t lay_out_strips(edm_instance *instance, const edm_call *call, uint8_t *block) {
  const edm_graph *graph = instance->graph;
  size_t used = 0;
  for (uint32_t i = 0; i < (uint32_t)call->inputs + call->outputs; ++i) {
    uint16_t number = graph->arguments[call->first + i];
    if (graph->tensors[number].place != EDM_IN_STRIPS) continue;
    if (block) instance->tensors[number].data = block + used;
    used += edm_align(edm_tensor_bytes(graph, &graph->tensors[number]));
  }
  return used;
}

/* While a node is probed, inputs and outputs of its graph lie in one block that the caller frees. */
static void *bind_ports(edm_instance *instance, const edm_call *call) {
  const edm_graph *graph = instance->graph;
  size_t pointers = edm_align((graph->input_count + graph->output_count) * sizeof(void *)), bytes = pointers;
  for (uint32_t i = 0; i < graph->input_count; ++i) bytes += edm_align((size_t)graph->inputs[i].bytes);
  for (uint32_t i = 0; i < graph->output_count; ++i) bytes += edm_align((size_t)graph->outputs[i].bytes);
  uint8_t *block = aligned_alloc(EDM_ALIGNMENT, bytes + lay_out_strips(instance, call, NULL));
  if (!block) return NULL;
  lay_out_strips(instance, call, block + bytes);
  void **inputs = (void **)(void *)block, **outputs = inputs + graph->input_count;
  uint8_t *next = block + pointers;
  for (uint32_t i = 0; i < graph->input_count; next += edm_align((size_t)graph->inputs[i++].bytes)) inputs[i] = next;
  for (uint32_t i = 0; i < graph->output_count; next += edm_align((size_t)graph->outputs[i++].bytes)) outputs[i] = next;
  edm_instance_bind(instance, inputs, outputs);
  return block;
}

edm_status edm_run_node(edm_session *session, const char *name, int number, const void *const *inputs,
                        void *const *outputs) {
  if (!session || !name || !inputs || !outputs) return edm_null("edm_run_node");
  if (session->busy) return edm_busy("edm_run_node");
  edm_instance *instance = strcmp(name, "step") == 0       ? &session->lanes[0].step
                           : strcmp(name, "prepare") == 0 ? &session->prepare
                           : strcmp(name, "decoder") == 0 ? &session->decoder
                                                          : NULL;
  const edm_graph *graph = instance ? instance->graph : NULL;
  if (!graph || number < 0 || (uint32_t)number >= graph->call_count)
    return edm_fail(EDM_BAD_ARGUMENT, "graph \"%s\" has no call %d", name, number);
  const edm_call *call = &graph->calls[number];
  void *ports = bind_ports(instance, call);
  if (!ports) return edm_fail(EDM_NO_MEMORY, "no memory to probe call %d", number);
  const uint16_t *arguments = graph->arguments + call->first;
  for (int i = 0, given = 0; i < call->inputs; ++i) {
    const edm_tensor *tensor = &graph->tensors[arguments[i]];
    if (tensor->place == EDM_IN_WEIGHTS) continue;
    memcpy(instance->tensors[arguments[i]].data, inputs[given++], edm_tensor_bytes(graph, tensor));
  }
  edm_pool *before = edm_pool_enter(session->pool);
  const edm_chain *chain = edm_chain_of(graph, (uint32_t)number);
  edm_status status = chain ? edm_chain_call(instance, chain, (uint32_t)number)
                            : edm_instance_call(instance, (uint32_t)number);
  edm_pool_enter(before);
  for (int i = 0; i < call->outputs && !status; ++i) {
    uint16_t index = arguments[call->inputs + i];
    memcpy(outputs[i], instance->tensors[index].data, edm_tensor_bytes(graph, &graph->tensors[index]));
  }
  for (int i = 0; i < call->inputs + call->outputs; ++i) {
    const edm_tensor *tensor = &graph->tensors[arguments[i]];
    if (tensor->place == EDM_IN_STRIPS) instance->tensors[arguments[i]].data = session->lanes[0].arena + tensor->offset;
  }
  free(ports);
  return status;
}

/* --- times ----------------------------------------------------------------------------------------------- */

uint64_t edm_nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int edm_call_count(const edm_session *session) { return (int)session->lanes[0].step.graph->call_count; }

edm_status edm_profile(edm_session *session, int step, const float *x, uint64_t *nanoseconds) {
  if (!session || !x || !nanoseconds) return edm_null("edm_profile");
  if (session->busy) return edm_busy("edm_profile");
  if (!session->steps) return edm_fail(EDM_BAD_ARGUMENT, "edm_profile before edm_prepare");
  if (step < 0 || step >= session->steps)
    return edm_fail(EDM_BAD_ARGUMENT, "step: expected 0..%d of the prepared schedule, got %d", session->steps - 1,
                    step);
  edm_lane *lane = &session->lanes[0];
  session->drawing = false;
  memcpy(lane->x, x, (size_t)edm_image_floats() * sizeof(float));
  edm_lane_bind(session, lane, EDM_CONDITIONAL, step);
  edm_pool *before = edm_pool_enter(session->pool);
  edm_status status = EDM_OK;
  for (uint32_t i = 0; i < lane->step.graph->call_count && !status; ++i) {
    const edm_chain *chain = edm_chain_of(lane->step.graph, i);
    uint64_t start = edm_nanoseconds();
    status = chain ? edm_chain_run(&lane->step, chain, nanoseconds + i) : edm_instance_call(&lane->step, i);
    if (chain) i += chain->count - 1;
    else nanoseconds[i] = edm_nanoseconds() - start;
  }
  edm_pool_enter(before);
  return status;
}
