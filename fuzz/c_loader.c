/* Coverage-guided fuzzing of everything that the generated runtime reads: weights (path, descriptor, memory), golden
 * data, layers and arrays. The first byte of an input chooses which. Built by fuzz/run.py with the sources of a bundle. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "program.h"
#include "runtime.h"

static edm_model *model;
static edm_session *session;
static int file = -1;
static char path[64];

int LLVMFuzzerInitialize(int *count, char ***arguments);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(edm_status status) {
  if (!status) return;
  fprintf(stderr, "%s\n", edm_last_error());
  abort();
}

int LLVMFuzzerInitialize(int *count, char ***arguments) {
  (void)count, (void)arguments;
  if (!freopen("/dev/null", "w", stdout)) abort();
  edm_source source = {.path = getenv("EDGEDM_FUZZ_WEIGHTS")};
  must(edm_open(&source, &model));
  edm_session_options options = {.threads = 1};
  must(edm_session_create(model, &options, &session));
  file = memfd_create("input", MFD_CLOEXEC);
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  return 0;
}

static void put(const uint8_t *data, size_t size) {
  if (ftruncate(file, 0) || pwrite(file, data, size, 0) != (ssize_t)size) abort();
}

static void open_weights(const uint8_t *data, size_t size) {
  uint64_t numbers[2] = {0, 0}; /* offset, length */
  if (size < sizeof numbers) return;
  memcpy(numbers, data, sizeof numbers);
  put(data + sizeof numbers, size - sizeof numbers);
  edm_source sources[] = {
      {.path = path, .offset = numbers[0], .length = numbers[1]},
      {.fd = file, .offset = numbers[0], .length = numbers[1]},
      {.memory = data + sizeof numbers, .length = size - sizeof numbers},
  };
  for (size_t i = 0; i < sizeof sources / sizeof *sources; ++i) {
    edm_model *opened = NULL;
    edm_status status = edm_open(&sources[i], &opened);
    if (status && opened) abort();
    edm_close(opened);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!size) return 0;
  uint8_t kind = *data++ % 4;
  --size;
  bool passed = false;
  if (kind == 0) {
    open_weights(data, size);
    return 0;
  }
  put(data, size);
  if (kind == 1) edm_self_test(session, path, "/nonexistent/layers.bin", &passed);
  if (kind == 2) edm_check_layers(session, path, &passed);
  if (kind == 3) {
    int64_t shape[3];
    edm_image_shape(shape);
    float *values = malloc((size_t)(shape[0] * shape[1] * shape[2]) * sizeof *values);
    if (values) edm_read_npy(path, shape, 3, values);
    free(values);
  }
  return 0;
}
