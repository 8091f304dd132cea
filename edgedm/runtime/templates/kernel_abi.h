/* The calling convention of the kernels: the part of TVM's and DLPack's C interfaces that they use. */
#ifndef EDM_KERNEL_ABI_H
#define EDM_KERNEL_ABI_H

#include <stdint.h>

typedef struct {
  int32_t type, id; /* type 1 is the CPU */
} DLDevice;

typedef struct {
  uint8_t code, bits; /* code: 0 int, 1 uint, 2 float, 6 bool */
  uint16_t lanes;
} DLDataType;

typedef struct {
  void *data; /* 64-byte aligned: the kernels rely on it without checking */
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides; /* NULL: compact */
  uint64_t byte_offset;
} DLTensor;

typedef struct {
  int32_t type_index; /* 7: a DLTensor pointer */
  uint32_t padding;
  union {
    int64_t integer;
    double real;
    void *pointer;
  } value;
} TVMFFIAny;

_Static_assert(sizeof(TVMFFIAny) == 16, "kernels expect 16-byte arguments");

enum { EDM_ARGUMENT_IS_TENSOR = 7, EDM_DEVICE_CPU = 1 };

typedef int (*edm_kernel)(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);

typedef struct {
  void *sync_handle;
  int32_t num_task;
} TVMParallelGroupEnv;

typedef int (*edm_parallel_body)(int task, TVMParallelGroupEnv *group, void *closure);

/* What the kernels call; weak, because every bundle in a program brings the same definitions. */
#define EDM_SHARED __attribute__((weak))
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits);
int TVMBackendFreeWorkspace(int device, int id, void *memory);
int TVMBackendParallelLaunch(edm_parallel_body body, void *closure, int tasks);
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol);

#endif
