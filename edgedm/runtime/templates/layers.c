/* Which layer is off? Every kernel call of a step is run alone on the reference's own inputs.
 *
 * File: "EDMLAYR1", u32 calls, u32 0; then for every call: u32 number, u32 bytes of the name, the name, the inputs that
 * are no constants, the outputs, as they lie in memory. Little endian. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

#ifndef EDM_PROBE
#error "this program runs single calls of the model: compile it and the library with -DEDM_PROBE"
#endif

enum { NAME_ROOM = 512, MOST_TENSORS = 256, CODE_FLOAT = 2, FORGIVEN = 1000 };

/* A kernel adds in another order than the reference; a value at a threshold may then fall on its other side. */
static const double allowed_error = 1e-4;

typedef struct {
  const edm_graph *graph; /* that of a step */
  const edm_call *call;
  char name[NAME_ROOM];
  uint8_t *block; /* inputs, wanted and computed outputs */
  const void *inputs[MOST_TENSORS];
  void *wanted[MOST_TENSORS], *got[MOST_TENSORS];
} layer;

static const edm_tensor *tensor_of(const layer *it, int argument) {
  return &it->graph->tensors[it->graph->arguments[it->call->first + (uint32_t)argument]];
}

static size_t bytes_of(const layer *it, int argument) {
  return edm_tensor_bytes(it->graph, tensor_of(it, argument));
}

/* Cut the block into pieces (NULL: only count) and return its size. */
static size_t lay_out(layer *it) {
  size_t used = 0;
  for (int i = 0, given = 0; i < it->call->inputs; ++i) {
    if (tensor_of(it, i)->place == EDM_IN_WEIGHTS) continue;
    it->inputs[given++] = it->block ? it->block + used : NULL;
    used += edm_align(bytes_of(it, i));
  }
  for (int i = 0; i < it->call->outputs; ++i) {
    size_t bytes = edm_align(bytes_of(it, it->call->inputs + i));
    it->wanted[i] = it->block ? it->block + used : NULL;
    it->got[i] = it->block ? it->block + used + bytes : NULL;
    used += 2 * bytes;
  }
  return used;
}

static bool read_tensors(layer *it, FILE *file) {
  for (int i = 0, given = 0; i < it->call->inputs; ++i) {
    if (tensor_of(it, i)->place == EDM_IN_WEIGHTS) continue;
    size_t bytes = bytes_of(it, i);
    if (fread((void *)(uintptr_t)it->inputs[given++], 1, bytes, file) != bytes) return false;
  }
  for (int i = 0; i < it->call->outputs; ++i) {
    size_t bytes = bytes_of(it, it->call->inputs + i);
    if (fread(it->wanted[i], 1, bytes, file) != bytes) return false;
  }
  return true;
}

/* Read the next call; free its block in any case. */
static edm_status read_layer(layer *it, FILE *file, const char *path) {
  uint32_t numbers[2];
  it->block = NULL;
  if (fread(numbers, sizeof *numbers, 2, file) != 2 || numbers[0] >= it->graph->call_count ||
      numbers[1] >= NAME_ROOM || fread(it->name, 1, numbers[1], file) != numbers[1])
    return edm_fail(EDM_BAD_FILE, "%s: truncated, or not of this model", path);
  it->name[numbers[1]] = 0;
  it->call = &it->graph->calls[numbers[0]];
  size_t bytes = lay_out(it);
  it->block = aligned_alloc(EDM_ALIGNMENT, bytes ? bytes : EDM_ALIGNMENT);
  if (!it->block) return edm_fail(EDM_NO_MEMORY, "no memory for the golden data of %s", it->name);
  lay_out(it);
  return read_tensors(it, file) ? EDM_OK : edm_fail(EDM_BAD_FILE, "%s: truncated", path);
}

static bool floats_agree(const float *got, const float *want, size_t count, char text[64]) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < count; ++i) {
    double gap = (double)got[i] - (double)want[i];
    difference += gap * gap;
    size += (double)want[i] * (double)want[i];
  }
  double error = sqrt(difference / (size > 0.0 ? size : 1.0));
  snprintf(text, 64, "relative error %.3e (allowed %.0e)", error, allowed_error);
  return error <= allowed_error; /* false for NaN */
}

/* Codes one a byte, or signs one a bit in words of 64. */
static bool integers_agree(const uint8_t *got, const uint8_t *want, size_t bytes, bool signs, char text[64]) {
  size_t differ = 0, total = signs ? bytes * 8 : bytes;
  for (size_t i = 0; i < bytes; ++i)
    differ += signs ? (size_t)__builtin_popcount((unsigned)(got[i] ^ want[i])) : got[i] != want[i];
  snprintf(text, 64, "%zu of %zu %s differ", differ, total, signs ? "signs" : "bytes");
  return differ <= 1 + total / FORGIVEN;
}

static bool agrees(const layer *it, char text[64]) {
  for (int i = 0; i < it->call->outputs; ++i) {
    const edm_tensor *tensor = tensor_of(it, it->call->inputs + i);
    size_t bytes = bytes_of(it, it->call->inputs + i);
    bool same = tensor->code == CODE_FLOAT
                    ? floats_agree(it->got[i], it->wanted[i], bytes / sizeof(float), text)
                    : integers_agree(it->got[i], it->wanted[i], bytes, tensor->bits == 64, text);
    if (!same) return false;
  }
  return true;
}

static edm_status run_layers(edm_session *session, FILE *file, const char *path, bool *passed) {
  char magic[8], text[64];
  uint32_t counts[2];
  if (fread(magic, 1, sizeof magic, file) != sizeof magic || memcmp(magic, "EDMLAYR1", 8) ||
      fread(counts, sizeof *counts, 2, file) != 2)
    return edm_fail(EDM_BAD_FILE, "%s: no golden data of layers", path);
  uint32_t off = 0;
  edm_status status = EDM_OK;
  for (uint32_t i = 0; i < counts[0] && !status; ++i) {
    layer it = {.graph = session->lanes[0].step.graph};
    status = read_layer(&it, file, path);
    int number = status ? 0 : (int)(it.call - it.graph->calls);
    if (!status) status = edm_run_node(session, "step", number, it.inputs, it.got);
    if (!status && !agrees(&it, text) && off++ == 0) printf("first layer that is off: %s: %s\n", it.name, text);
    free(it.block);
  }
  if (!status) printf("layers %u, off %u\n", counts[0], off);
  *passed = *passed && off == 0;
  return status;
}

edm_status edm_check_layers(edm_session *session, const char *path, bool *passed) {
  FILE *file = fopen(path, "rb");
  if (!file && errno == ENOENT) {
    printf("layers not compared: there is no %s\n", path);
    return EDM_OK;
  }
  if (!file) return edm_fail(EDM_BAD_FILE, "%s: %s", path, strerror(errno));
  edm_status status = run_layers(session, file, path, passed);
  fclose(file);
  return status;
}
