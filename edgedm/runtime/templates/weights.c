/* Opening a model: find the weights, map them, refuse them unless they are those that were compiled. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime.h"

bool edm_may_be_read(const char *path) {
  struct stat found;
  return stat(path, &found) || S_ISREG(found.st_mode);
}

/* Map [offset, offset + length) of an open file; length 0 means up to its end. */
static edm_status map_file(edm_model *model, int fd, uint64_t offset, uint64_t length, const char *name) {
  struct stat status;
  if (fstat(fd, &status)) return edm_fail(EDM_BAD_FILE, "%s: %s", name, strerror(errno));
  if (status.st_size < 0 || offset > (uint64_t)status.st_size)
    return edm_fail(EDM_BAD_FILE, "%s: offset %llu is beyond its end", name, (unsigned long long)offset);
  uint64_t rest = (uint64_t)status.st_size - offset;
  uint64_t wanted = length ? length : rest;
  if (wanted > rest)
    return edm_fail(EDM_BAD_FILE, "%s: %llu bytes at offset %llu go beyond its end", name, (unsigned long long)wanted,
                    (unsigned long long)offset);
  if (wanted != edm_compiled.weights_bytes)
    return edm_fail(EDM_BAD_FILE, "%s: expected %llu bytes of weights, found %llu", name,
                    (unsigned long long)edm_compiled.weights_bytes, (unsigned long long)wanted);
  if (wanted == 0) return EDM_OK; /* a model without constants: nothing to map */
  if (wanted > SIZE_MAX / 2)
    return edm_fail(EDM_NO_MEMORY, "%s: %llu bytes are more than this machine can address", name,
                    (unsigned long long)wanted);
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t start = offset / page * page;
  model->mapped_bytes = (size_t)(offset + wanted - start);
  model->mapped = mmap(NULL, model->mapped_bytes, PROT_READ, MAP_PRIVATE, fd, (off_t)start);
  if (model->mapped == MAP_FAILED) {
    model->mapped = NULL;
    return edm_fail(EDM_BAD_FILE, "%s: %s", name, strerror(errno));
  }
  model->weights = (const uint8_t *)model->mapped + (offset - start);
  return EDM_OK;
}

static edm_status find(edm_model *model, const edm_source *source) {
  if (source->memory) {
    if (source->length != edm_compiled.weights_bytes)
      return edm_fail(EDM_BAD_FILE, "weights in memory: expected %llu bytes, got %llu",
                      (unsigned long long)edm_compiled.weights_bytes, (unsigned long long)source->length);
    model->weights = (const uint8_t *)source->memory + source->offset;
    return EDM_OK;
  }
  if (!source->path) return map_file(model, source->fd, source->offset, source->length, "weights");
  if (!edm_may_be_read(source->path)) return edm_fail(EDM_BAD_FILE, "%s: is no file", source->path);
  int fd = open(source->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return edm_fail(EDM_BAD_FILE, "%s: %s", source->path, strerror(errno));
  edm_status status = map_file(model, fd, source->offset, source->length, source->path);
  close(fd);
  return status;
}

static bool reads(const edm_model *model, const edm_section *section) {
  return section->readers >> (model->variant - edm_compiled.variants) & 1;
}

static void unmap(edm_model *model) {
  if (model->mapped) munmap(model->mapped, model->mapped_bytes);
  model->mapped = NULL;
}

/* The kernels need 64-byte alignment, which a caller's memory or an odd file offset may lack. What other variants read
 * is not copied, and the system gives no memory to pages that nobody writes; the file itself is needed no longer. */
static edm_status align(edm_model *model) {
  if ((uintptr_t)model->weights % EDM_ALIGNMENT == 0) return EDM_OK;
  model->copied = aligned_alloc(EDM_ALIGNMENT, edm_align((size_t)edm_compiled.weights_bytes));
  if (!model->copied) return edm_fail(EDM_NO_MEMORY, "no memory for an aligned copy of the weights");
  for (uint32_t i = 0; i < edm_compiled.section_count; ++i) {
    const edm_section *section = &edm_compiled.sections[i];
    if (reads(model, section))
      memcpy((uint8_t *)model->copied + section->offset, model->weights + section->offset, (size_t)section->bytes);
  }
  unmap(model);
  model->weights = model->copied;
  return EDM_OK;
}

/* Hash what the variant reads, and nothing else: the pages of others stay on the disk. */
static edm_status check(const edm_model *model, const char *name) {
  for (uint32_t i = 0; i < edm_compiled.section_count; ++i) {
    const edm_section *section = &edm_compiled.sections[i];
    if (!reads(model, section)) continue;
    uint8_t digest[32];
    edm_sha256(model->weights + section->offset, section->bytes, digest);
    if (memcmp(digest, section->sha256, sizeof digest))
      return edm_fail(EDM_BAD_FILE, "%s: not the weights that this model was compiled with (SHA-256 differs)", name);
  }
  return EDM_OK;
}

edm_status edm_open(const edm_source *source, edm_model **model) {
  if (model) *model = NULL; /* a caller that cleans up after a failure frees that */
  if (!source || !model) return edm_null("edm_open");
  edm_model *opened = calloc(1, sizeof *opened);
  if (!opened) return edm_fail(EDM_NO_MEMORY, "no memory for a model");
  edm_status status = edm_pick_variant(source->variant, &opened->variant);
  if (!status) status = find(opened, source);
  if (!status) status = align(opened);
  if (!status) status = check(opened, source->path && !source->memory ? source->path : "weights");
  if (status) {
    edm_close(opened);
    return status;
  }
  *model = opened;
  return EDM_OK;
}

const char *edm_model_variant(const edm_model *model) { return model->variant->name; }

void edm_close(edm_model *model) {
  if (!model) return;
  unmap(model);
  free(model->copied);
  free(model);
}
