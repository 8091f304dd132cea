/* Chains: calls that run together on one unit after another, some rows of one head each, so that what lies between them
 * (attention's scores) stays in a core's cache. Tasks share the units; each has room for one unit between the calls. */
#include <stdatomic.h>
#include <string.h>

#include "runtime.h"

/* The compiler makes chains of 4 calls of 11 arguments and 8 tasks at the most (edgedm/lower/strips.py). */
enum { MOST_CALLS = 4, MOST_ARGUMENTS = 16, MOST_TASKS = 8 };

typedef struct {
  const edm_instance *instance;
  const edm_chain *chain;
  uint32_t first, count;         /* the calls that run */
  bool whole;                    /* what lies between the calls lies whole */
  uint64_t (*spent)[MOST_CALLS]; /* nanoseconds by task and call, or NULL */
  atomic_flag failed;            /* set by the first task that fails, which leaves its thread's message */
  char message[sizeof edm_kernel_message];
} job;

const edm_chain *edm_chain_of(const edm_graph *graph, uint32_t call) {
  for (uint32_t i = 0; i < graph->chain_count; ++i)
    if (call >= graph->chains[i].first && call - graph->chains[i].first < graph->chains[i].count)
      return &graph->chains[i];
  return NULL;
}

/* Where the part of an argument begins that a unit gets. */
static uint8_t *part_of(const job *it, uint32_t argument, uint32_t task, uint32_t unit) {
  const edm_graph *graph = it->instance->graph;
  const edm_chain *chain = it->chain;
  uint16_t number = graph->arguments[argument];
  const edm_tensor *tensor = &graph->tensors[number];
  uint8_t *data = it->instance->tensors[number].data;
  size_t bytes = edm_tensor_bytes(graph, tensor), rows = bytes / ((size_t)chain->heads * chain->strips);
  switch (graph->parts[argument]) {
    case EDM_OF_HEAD: return data + unit / chain->strips * (bytes / chain->heads);
    case EDM_OF_TASK: return data + task * (bytes / chain->tasks);
    case EDM_OF_ROWS:
      return tensor->place == EDM_IN_STRIPS && !it->whole ? data + task * edm_align(rows) : data + unit * rows;
    default: return data;
  }
}

static int run_call(const job *it, uint32_t number, uint32_t task, uint32_t unit, bool new_head) {
  const edm_call *call = &it->instance->graph->calls[number];
  int count = call->inputs + call->outputs + call->scratch;
  DLTensor tensors[MOST_ARGUMENTS];
  TVMFFIAny arguments[MOST_ARGUMENTS], result = {0};
  for (int i = 0; i < count; ++i) {
    arguments[i] = it->instance->arguments[call->first + (uint32_t)i];
    tensors[i] = *(const DLTensor *)arguments[i].value.pointer;
    tensors[i].data = part_of(it, call->first + (uint32_t)i, task, unit);
    arguments[i].value.pointer = &tensors[i];
  }
  int status = new_head && call->before ? call->before(NULL, arguments, count, &result) : 0;
  return status ? status : call->kernel(NULL, arguments, count, &result);
}

static int fail(job *it, int status) {
  if (!atomic_flag_test_and_set(&it->failed)) memcpy(it->message, edm_kernel_message, sizeof it->message);
  return status;
}

static int run_task(int number, TVMParallelGroupEnv *group, void *closure) {
  (void)group;
  job *it = closure;
  uint32_t task = (uint32_t)number, units = it->chain->heads * it->chain->strips, tasks = it->chain->tasks;
  uint32_t first = task * units / tasks;
  for (uint32_t unit = first; unit < (task + 1) * units / tasks; ++unit)
    for (uint32_t i = 0; i < it->count; ++i) {
      uint64_t start = it->spent ? edm_nanoseconds() : 0;
      int status = run_call(it, it->first + i, task, unit, unit == first || unit % it->chain->strips == 0);
      if (status) return fail(it, status);
      if (it->spent) it->spent[task][i] += edm_nanoseconds() - start;
    }
  return 0;
}

static edm_status run(job *it) {
  if (TVMBackendParallelLaunch(run_task, it, (int)it->chain->tasks))
    return edm_fail(EDM_KERNEL_FAILED, "kernel calls %u to %u: %s", it->first, it->first + it->count - 1,
                    it->message);
  return EDM_OK;
}

edm_status edm_chain_call(edm_instance *instance, const edm_chain *chain, uint32_t call) {
  job it = {instance, chain, call, 1, true, NULL, ATOMIC_FLAG_INIT, ""};
  return run(&it);
}

/* The time that it took is shared out as the tasks' time was. */
static void share_out(const job *it, uint64_t took, uint64_t *nanoseconds) {
  uint64_t all = 0;
  for (uint32_t i = 0; i < it->count; ++i) {
    nanoseconds[i] = 0;
    for (uint32_t task = 0; task < it->chain->tasks; ++task) nanoseconds[i] += it->spent[task][i];
    all += nanoseconds[i];
  }
  for (uint32_t i = 0; i < it->count; ++i)
    nanoseconds[i] = (uint64_t)((double)took * (double)nanoseconds[i] / (double)(all ? all : 1));
}

edm_status edm_chain_run(edm_instance *instance, const edm_chain *chain, uint64_t *nanoseconds) {
  uint64_t spent[MOST_TASKS][MOST_CALLS];
  job it = {instance, chain, chain->first, chain->count, false, nanoseconds ? spent : NULL, ATOMIC_FLAG_INIT, ""};
  if (!nanoseconds) return run(&it);
  memset(spent, 0, sizeof spent);
  uint64_t start = edm_nanoseconds();
  edm_status status = run(&it);
  share_out(&it, edm_nanoseconds() - start, nanoseconds);
  return status;
}
