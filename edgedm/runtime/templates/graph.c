/* Running a graph: a flat list of kernel calls on tensors whose places were planned by the compiler. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

EDM_SHARED _Thread_local char edm_kernel_message[256];

/* The workspace below is left alone: no kernel of today uses it, and what nothing names is not linked. */
void edm_enter_kernels(void) { (void)*(volatile char *)edm_kernel_message; }

size_t edm_instance_bytes(const edm_graph *graph) {
  return edm_align(graph->tensor_count * sizeof(DLTensor)) + edm_align(graph->argument_count * sizeof(TVMFFIAny));
}

void edm_instance_init(edm_instance *instance, const edm_graph *graph, void *memory, const uint8_t *weights,
                       uint8_t *arena) {
  instance->graph = graph;
  instance->tensors = memory;
  instance->arguments = (TVMFFIAny *)((uint8_t *)memory + edm_align(graph->tensor_count * sizeof(DLTensor)));
  for (uint32_t i = 0; i < graph->tensor_count; ++i) {
    const edm_tensor *from = &graph->tensors[i];
    DLTensor *tensor = &instance->tensors[i];
    memset(tensor, 0, sizeof *tensor);
    tensor->device.type = EDM_DEVICE_CPU;
    tensor->ndim = from->rank;
    tensor->dtype = (DLDataType){from->code, from->bits, 1};
    tensor->shape = (int64_t *)(uintptr_t)&graph->extents[from->shape]; /* only read */
    if (from->place == EDM_IN_ARENA || from->place == EDM_IN_STRIPS) tensor->data = arena + from->offset;
    if (from->place == EDM_IN_WEIGHTS) tensor->data = (uint8_t *)(uintptr_t)(weights + from->offset); /* only read */
  }
  for (uint32_t i = 0; i < graph->argument_count; ++i) {
    TVMFFIAny *argument = &instance->arguments[i];
    memset(argument, 0, sizeof *argument);
    argument->type_index = EDM_ARGUMENT_IS_TENSOR;
    argument->value.pointer = &instance->tensors[graph->arguments[i]];
  }
}

void edm_instance_bind(edm_instance *instance, void *const *inputs, void *const *outputs) {
  for (uint32_t i = 0; i < instance->graph->bound_count; ++i) {
    const edm_tensor *from = &instance->graph->tensors[i];
    instance->tensors[i].data = from->place == EDM_AT_INPUT ? inputs[from->offset] : outputs[from->offset];
  }
}

edm_status edm_instance_call(edm_instance *instance, uint32_t number) {
  const edm_call *call = &instance->graph->calls[number];
  TVMFFIAny result = {0};
  int count = call->inputs + call->outputs + call->scratch;
  if (call->kernel(NULL, instance->arguments + call->first, count, &result))
    return edm_fail(EDM_KERNEL_FAILED, "kernel call %u: %s", number, edm_kernel_message);
  return EDM_OK;
}

edm_status edm_instance_run(edm_instance *instance, void *const *inputs, void *const *outputs) {
  const edm_graph *graph = instance->graph;
  edm_instance_bind(instance, inputs, outputs);
  for (uint32_t i = 0, next = 0; i < graph->call_count; ++i) {
    const edm_chain *chain = next < graph->chain_count && graph->chains[next].first == i ? &graph->chains[next++] : NULL;
    edm_status status = chain ? edm_chain_run(instance, chain, NULL) : edm_instance_call(instance, i);
    if (status) return status;
    if (chain) i += chain->count - 1;
  }
  for (uint32_t i = 0; i < graph->output_count; ++i) {
    const edm_port *port = &graph->outputs[i];
    if (port->copy_from != EDM_WRITTEN_IN_PLACE)
      memcpy(outputs[i], instance->tensors[port->copy_from].data, (size_t)port->bytes);
  }
  return EDM_OK;
}

/* --- what the kernels call ------------------------------------------------------------------------------- */

EDM_SHARED void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t length = (size_t)snprintf(edm_kernel_message, sizeof edm_kernel_message, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) {
    if (length >= sizeof edm_kernel_message) return;
    length += (size_t)snprintf(edm_kernel_message + length, sizeof edm_kernel_message - length, "%s",
                               parts[i] ? parts[i] : "");
  }
}

/* Kernels keep temporaries above a kilobyte here: a stack for every thread, so that nothing is allocated. NULL
 * makes the kernel fail. */
enum { WORKSPACE_BYTES = 1 << 16 };
static _Thread_local _Alignas(EDM_ALIGNMENT) uint8_t workspace[WORKSPACE_BYTES];
static _Thread_local size_t workspace_used;

EDM_SHARED void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  size_t wanted = edm_align((size_t)bytes);
  if (bytes > WORKSPACE_BYTES || wanted > WORKSPACE_BYTES - workspace_used) {
    snprintf(edm_kernel_message, sizeof edm_kernel_message, "needs %zu bytes of workspace, %zu are left", wanted,
             WORKSPACE_BYTES - workspace_used);
    return NULL;
  }
  void *piece = workspace + workspace_used;
  workspace_used += wanted;
  return piece;
}

EDM_SHARED int TVMBackendFreeWorkspace(int device, int id, void *memory) {
  (void)device, (void)id;
  workspace_used = (size_t)((uint8_t *)memory - workspace); /* last taken, first given back */
  return 0;
}

/* Kernel objects register themselves when they are loaded; nothing looks them up by name here. */
EDM_SHARED int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) {
  (void)name, (void)symbol;
  return 0;
}
