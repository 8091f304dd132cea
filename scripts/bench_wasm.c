/* Times kernels on operands of ones: the best of a second's calls of each, in seconds. See bench_wasm.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernel_abi.h"

enum { ALIGNMENT = 64, MOST_ARGUMENTS = 16, FEWEST_CALLS = 5 };

extern const edm_kernel kernels[];
extern const uint64_t sizes[][MOST_ARGUMENTS]; /* of the arguments in bytes; 0 behind the last */
extern const int kernel_count;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
}

static void *allocate(uint64_t bytes) {
  return aligned_alloc(ALIGNMENT, ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  return allocate(bytes);
}

int TVMBackendFreeWorkspace(int device, int id, void *memory) {
  (void)device, (void)id;
  free(memory);
  return 0;
}

int TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int tasks) {
  TVMParallelGroupEnv group = {NULL, tasks > 0 ? tasks : 1};
  for (int task = 0; task < group.num_task; ++task)
    if (body(task, &group, closure)) return -1;
  return 0;
}

int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) {
  (void)name, (void)symbol;
  return 0;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Negative for a kernel that fails. */
static double best_of(edm_kernel kernel, const TVMFFIAny *arguments, int count) {
  double best = -1.0, begun = now();
  for (int calls = 0; calls < FEWEST_CALLS || now() - begun < 1.0; ++calls) {
    TVMFFIAny result;
    double before = now();
    if (kernel(NULL, arguments, count, &result)) return -1.0;
    double spent = now() - before;
    if (best < 0.0 || spent < best) best = spent;
  }
  return best;
}

int main(void) {
  for (int k = 0; k < kernel_count; ++k) {
    TVMFFIAny arguments[MOST_ARGUMENTS];
    DLTensor tensors[MOST_ARGUMENTS];
    int count = 0;
    memset(tensors, 0, sizeof tensors);
    for (; count < MOST_ARGUMENTS && sizes[k][count]; ++count) {
      tensors[count].data = memset(allocate(sizes[k][count]), 1, (size_t)sizes[k][count]);
      tensors[count].device.type = EDM_DEVICE_CPU;
      arguments[count] = (TVMFFIAny){.type_index = EDM_ARGUMENT_IS_TENSOR, .value.pointer = &tensors[count]};
    }
    double seconds = best_of(kernels[k], arguments, count);
    if (seconds < 0.0) return 1;
    printf("%.9f\n", seconds);
    for (int i = 0; i < count; ++i) free(tensors[i].data);
  }
  return 0;
}
