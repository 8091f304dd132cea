/* Reading a NumPy array of one known shape, float32, and nothing else. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "program.h"

enum { PREAMBLE = 10, HEADER_ROOM = 4096 }; /* numpy's own headers have 118 bytes */

/* Whether a header says float32, rows first, of this shape: as numpy.save writes it, then spaces and a line's end. */
static bool says(const char *header, size_t length, const char *shape) {
  char expected[192];
  int used = snprintf(expected, sizeof expected, "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", shape);
  if ((size_t)used >= length || memcmp(header, expected, (size_t)used) || header[length - 1] != '\n') return false;
  for (size_t i = (size_t)used; i + 1 < length; ++i)
    if (header[i] != ' ') return false;
  return true;
}

/* "2, 3", or "2," for one axis. */
static void write_shape(char *text, size_t room, const int64_t *shape, int rank) {
  size_t used = 0;
  text[0] = 0;
  for (int i = 0; i < rank && used < room; ++i)
    used += (size_t)snprintf(text + used, room - used, rank > 1 && i + 1 == rank ? "%lld" : i + 1 == rank ? "%lld," : "%lld, ",
                             (long long)shape[i]);
}

static edm_status read_open(FILE *file, const char *path, const int64_t *shape, int rank, float *values) {
  unsigned char preamble[PREAMBLE];
  char header[HEADER_ROOM], exact[96], batched[112];
  if (fread(preamble, 1, PREAMBLE, file) != PREAMBLE || memcmp(preamble, "\x93NUMPY\x01\x00", 8))
    return edm_fail(EDM_BAD_ARGUMENT, "%s: not a NumPy array of format 1.0", path);
  size_t length = (size_t)preamble[8] | (size_t)preamble[9] << 8;
  if (!length || length > HEADER_ROOM || fread(header, 1, length, file) != length)
    return edm_fail(EDM_BAD_ARGUMENT, "%s: a truncated NumPy array, or one with a header of %zu bytes", path, length);
  write_shape(exact, sizeof exact, shape, rank);
  snprintf(batched, sizeof batched, "1, %s", exact);
  if (!says(header, length, exact) && !says(header, length, batched)) {
    for (size_t i = 0; i < length; ++i)
      if (header[i] < ' ' || header[i] > '~') header[i] = ' ';
    while (length > 1 && header[length - 1] == ' ') --length;
    return edm_fail(EDM_BAD_ARGUMENT, "%s: expected float32 of shape (%s), rows first; its header says %.*s", path,
                    exact, (int)(length < 160 ? length : 160), header);
  }
  size_t count = 1; /* `values` holds as many, so that this does not wrap */
  for (int i = 0; i < rank; ++i) count *= (size_t)shape[i];
  if (fread(values, sizeof *values, count, file) != count)
    return edm_fail(EDM_BAD_ARGUMENT, "%s: fewer numbers than its shape says", path);
  if (fgetc(file) != EOF) return edm_fail(EDM_BAD_ARGUMENT, "%s: more bytes than its shape says", path);
  return EDM_OK;
}

edm_status edm_read_npy(const char *path, const int64_t *shape, int rank, float *values) {
  if (!edm_may_be_read(path)) return edm_fail(EDM_BAD_ARGUMENT, "%s: is no file", path);
  FILE *file = fopen(path, "rb");
  if (!file) return edm_fail(EDM_BAD_ARGUMENT, "%s: %s", path, strerror(errno));
  edm_status status = read_open(file, path, shape, rank, values);
  fclose(file);
  return status;
}
