/* Runs kernels on the operands that come over standard input and writes what they put out: see foreign_kernels.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_abi.h"

enum { ALIGNMENT = 64, MOST_ARGUMENTS = 32, GUARD = 64, GUARD_BYTE = 0xa5, TASKS = 2 };

extern const edm_kernel kernels[];

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

int TVMBackendFreeWorkspace(int device, int id, void *memory) {
  (void)device, (void)id;
  free(memory);
  return 0;
}

int TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int tasks) {
  TVMParallelGroupEnv group = {NULL, tasks > 0 ? tasks : TASKS};
  for (int task = 0; task < group.num_task; ++task)
    if (body(task, &group, closure)) return -1;
  return 0;
}

int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) {
  (void)name, (void)symbol;
  return 0;
}

static void get(void *to, size_t size) {
  if (fread(to, 1, size, stdin) != size) {
    fputs("the input ends early\n", stderr);
    exit(2);
  }
}

int main(void) {
  uint64_t call[4]; /* number of the kernel, of its arguments, of the first output, of what follows the last */
  while (fread(call, sizeof *call, 4, stdin) == 4) {
    TVMFFIAny arguments[MOST_ARGUMENTS], result;
    DLTensor tensors[MOST_ARGUMENTS];
    uint64_t sizes[MOST_ARGUMENTS];
    memset(tensors, 0, sizeof tensors);
    for (uint64_t i = 0; i < call[1]; ++i) {
      get(&sizes[i], sizeof sizes[i]);
      char *data = aligned_alloc(ALIGNMENT, (sizes[i] + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
      if (!data) return 2;
      get(data, sizes[i]);
      memset(data + sizes[i], GUARD_BYTE, GUARD);
      tensors[i].data = data;
      tensors[i].device.type = EDM_DEVICE_CPU;
      arguments[i].type_index = EDM_ARGUMENT_IS_TENSOR;
      arguments[i].padding = 0;
      arguments[i].value.pointer = &tensors[i];
    }
    if (kernels[call[0]](NULL, arguments, (int32_t)call[1], &result)) return 3;
    for (uint64_t i = 0; i < call[1]; ++i) {
      unsigned char *data = tensors[i].data;
      for (int j = 0; j < GUARD; ++j)
        if (data[sizes[i] + (size_t)j] != GUARD_BYTE) {
          fprintf(stderr, "kernel %d wrote beyond its argument %d\n", (int)call[0], (int)i);
          return 4;
        }
      if (i >= call[2] && i < call[3]) fwrite(data, 1, sizes[i], stdout);
      free(data);
    }
  }
  return 0;
}
