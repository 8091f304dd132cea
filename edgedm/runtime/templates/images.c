/* Images as files: a PNG grid with stored (uncompressed) deflate blocks, or a NumPy array. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime.h"

/* --- PNG (ISO/IEC 15948) --------------------------------------------------------------------------------- */

enum { BORDER = 2, BACKGROUND = 64, STORED_LIMIT = 65535 }; /* as in edgedm/images.py */

typedef struct {
  FILE *file;
  uint32_t crc;
} png_chunk;

static uint32_t crc_of(uint32_t crc, const uint8_t *data, size_t length) {
  for (size_t i = 0; i < length; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return crc;
}

static void big_endian(uint8_t bytes[4], uint32_t value) {
  for (int i = 0; i < 4; ++i) bytes[i] = (uint8_t)(value >> (24 - 8 * i));
}

static void put(png_chunk *chunk, const void *data, size_t length) {
  chunk->crc = crc_of(chunk->crc, data, length);
  fwrite(data, 1, length, chunk->file);
}

static png_chunk begin_chunk(FILE *file, const char *type, uint32_t length) {
  uint8_t bytes[4];
  png_chunk chunk = {file, 0xFFFFFFFFu};
  big_endian(bytes, length);
  fwrite(bytes, 1, 4, file);
  put(&chunk, type, 4);
  return chunk;
}

static void end_chunk(png_chunk *chunk) {
  uint8_t bytes[4];
  big_endian(bytes, chunk->crc ^ 0xFFFFFFFFu);
  fwrite(bytes, 1, 4, chunk->file);
}

/* Bytes of a zlib stream of stored blocks. */
static uint64_t stored_bytes(uint64_t length) {
  return 2 + length + 5 * ((length + STORED_LIMIT - 1) / STORED_LIMIT) + 4;
}

/* One IDAT chunk with `length` bytes of scanlines. */
static void put_scanlines(FILE *file, const uint8_t *data, size_t length) {
  png_chunk chunk = begin_chunk(file, "IDAT", (uint32_t)stored_bytes(length));
  put(&chunk, "\x78\x01", 2);
  uint32_t low = 1, high = 0; /* Adler-32 */
  for (size_t at = 0; at < length; at += STORED_LIMIT) {
    size_t size = length - at < STORED_LIMIT ? length - at : STORED_LIMIT;
    uint8_t header[5] = {at + size == length, (uint8_t)size, (uint8_t)(size >> 8), (uint8_t)~size,
                         (uint8_t)(~size >> 8)};
    put(&chunk, header, sizeof header);
    put(&chunk, data + at, size);
    for (size_t i = 0; i < size; ++i) {
      low = (low + data[at + i]) % 65521;
      high = (high + low) % 65521;
    }
  }
  uint8_t adler[4];
  big_endian(adler, high << 16 | low);
  put(&chunk, adler, 4);
  end_chunk(&chunk);
}

/* -1..1 to 0..255, clamped, rounding half up; NaN is 0 */
static uint8_t pixel(float value) {
  if (!(value > -1.0F)) return 0;
  return value >= 1.0F ? 255 : (uint8_t)((value + 1.0F) * 127.5F + 0.5F);
}

typedef struct { /* where images lie in a grid; in 64 bits, because too large a grid is refused by its size */
  uint64_t columns, width, height;
  uint64_t line; /* bytes of a row of pixels; the first is the filter: none */
} png_grid;

static png_grid grid_of(uint32_t count, const int64_t shape[3]) {
  png_grid grid = {.columns = 1};
  while (grid.columns * grid.columns < count) ++grid.columns;
  uint64_t rows = (count + grid.columns - 1) / grid.columns;
  grid.width = grid.columns * ((uint64_t)shape[2] + BORDER) + BORDER;
  grid.height = rows * ((uint64_t)shape[1] + BORDER) + BORDER;
  grid.line = 1 + grid.width * (uint64_t)shape[0];
  return grid;
}

static edm_status check_png(uint32_t count, const int64_t shape[3]) {
  if (shape[0] != 1 && shape[0] != 3)
    return edm_fail(EDM_BAD_ARGUMENT, "PNG needs 1 or 3 channels, this model has %d: write .npy", (int)shape[0]);
  png_grid grid = grid_of(count, shape);
  if (stored_bytes(grid.line * grid.height) > INT32_MAX) /* the most that a chunk holds */
    return edm_fail(EDM_BAD_ARGUMENT, "%u images are more than a PNG holds: write .npy", count);
  return EDM_OK;
}

/* What check_png allows. */
static edm_status write_png(FILE *file, const float *images, uint32_t count, const int64_t shape[3]) {
  size_t channels = (size_t)shape[0], height = (size_t)shape[1], width = (size_t)shape[2];
  png_grid size = grid_of(count, shape);
  size_t columns = (size_t)size.columns, line = (size_t)size.line, grid_height = (size_t)size.height;
  uint8_t *grid = malloc(line * grid_height);
  if (!grid) return edm_fail(EDM_NO_MEMORY, "no memory for a grid of %u images", count);
  memset(grid, BACKGROUND, line * grid_height);
  for (size_t y = 0; y < grid_height; ++y) grid[y * line] = 0;
  for (size_t i = 0; i < count; ++i) {
    size_t top = i / columns * (height + BORDER) + BORDER, left = i % columns * (width + BORDER) + BORDER;
    for (size_t y = 0; y < height; ++y)
      for (size_t x = 0; x < width; ++x)
        for (size_t c = 0; c < channels; ++c)
          grid[(top + y) * line + 1 + (left + x) * channels + c] =
              pixel(images[((i * channels + c) * height + y) * width + x]);
  }
  uint8_t header[13] = {0};
  big_endian(header, (uint32_t)size.width);
  big_endian(header + 4, (uint32_t)grid_height);
  header[8] = 8;                     /* bits */
  header[9] = channels == 3 ? 2 : 0; /* RGB or grey */
  fwrite("\x89PNG\r\n\x1a\n", 1, 8, file);
  png_chunk chunk = begin_chunk(file, "IHDR", sizeof header);
  put(&chunk, header, sizeof header);
  end_chunk(&chunk);
  put_scanlines(file, grid, line * grid_height);
  chunk = begin_chunk(file, "IEND", 0);
  end_chunk(&chunk);
  free(grid);
  return EDM_OK;
}

/* --- .npy (version 1.0) ---------------------------------------------------------------------------------- */

static edm_status write_npy(FILE *file, const float *images, uint32_t count, const int64_t shape[3]) {
  char header[128];
  memset(header, ' ', sizeof header);
  memcpy(header, "\x93NUMPY\x01\x00", 8);
  header[8] = sizeof header - 10;
  header[9] = 0;
  int length = snprintf(header + 10, sizeof header - 10,
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (%u, %d, %d, %d), }", count, (int)shape[0],
                        (int)shape[1], (int)shape[2]);
  header[10 + length] = ' ';
  header[sizeof header - 1] = '\n';
  fwrite(header, 1, sizeof header, file);
  fwrite(images, sizeof(float), (size_t)count * (size_t)(shape[0] * shape[1] * shape[2]), file);
  return EDM_OK;
}

/* --- either ---------------------------------------------------------------------------------------------- */

static bool ends_with(const char *path, const char *suffix) {
  size_t length = strlen(path), tail = strlen(suffix);
  return length > tail && strcmp(path + length - tail, suffix) == 0;
}

/* What else is wrong with a name is the system's to say, when the file is written. */
static bool has_folder(const char *path) {
  char folder[4096];
  struct stat found;
  const char *slash = strrchr(path, '/');
  size_t length = slash ? (size_t)(slash - path) + 1 : 0;
  if (length == 0 || length >= sizeof folder) return true;
  memcpy(folder, path, length);
  folder[length] = '\0';
  return stat(folder, &found) ? errno != ENOENT && errno != ENOTDIR : S_ISDIR(found.st_mode);
}

/* A file under this name is replaced; a folder, a pipe or a device is not. */
static edm_status check_replaced(const char *path) {
  struct stat found;
  if (!has_folder(path)) return edm_fail(EDM_IO_FAILED, "%s: there is no such folder to write it into", path);
  if (stat(path, &found) || S_ISREG(found.st_mode)) return EDM_OK;
  return edm_fail(EDM_IO_FAILED, "%s: exists and is no regular file: it is not replaced", path);
}

edm_status edm_check_output(const char *path, uint32_t count, const int64_t shape[3]) {
  bool png = ends_with(path, ".png");
  if (!png && !ends_with(path, ".npy"))
    return edm_fail(EDM_BAD_ARGUMENT, "%s: expected a name that ends in .png or .npy", path);
  edm_status status = png ? check_png(count, shape) : EDM_OK;
  return status ? status : check_replaced(path);
}

/* Whether the contents are on the disk, before a name points to them; file systems that cannot tell are let be. */
static bool settled(FILE *file) {
  if (fflush(file)) return false;
  return fsync(fileno(file)) == 0 || errno == EINVAL || errno == ENOTSUP || errno == ENOSYS;
}

enum { MOST_SCRATCH = 1000, SCRATCH_ROOM = 48 /* beyond the path's own length */ };

/* A new file beside `path`, and its name: never one that is there already, which another thread may be writing, or a
 * link to anywhere. */
static FILE *open_scratch(const char *path, char *scratch, size_t room) {
  const char *slash = strrchr(path, '/');
  int folder = slash ? (int)(slash + 1 - path) : 0;
  for (int number = 0; number < MOST_SCRATCH; ++number) {
    snprintf(scratch, room, "%.*s.%s.%ld.%d.part", folder, path, path + folder, (long)getpid(), number);
    FILE *file = fopen(scratch, "wbx");
    if (file || errno != EEXIST) return file;
  }
  return NULL;
}

static edm_status write_shaped(const char *path, const float *images, uint32_t count, const int64_t shape[3]) {
  edm_status status = edm_check_output(path, count, shape);
  if (status) return status;
  bool png = ends_with(path, ".png");
  size_t room = strlen(path) + SCRATCH_ROOM;
  char *scratch = malloc(room);
  if (!scratch) return edm_fail(EDM_NO_MEMORY, "no memory to write %s", path);
  FILE *file = open_scratch(path, scratch, room);
  if (!file) {
    status = edm_fail(EDM_IO_FAILED, "%s: %s", path, strerror(errno));
  } else {
    status = png ? write_png(file, images, count, shape) : write_npy(file, images, count, shape);
    bool failed = ferror(file) != 0 || (!status && !settled(file));
    failed = fclose(file) != 0 || failed;
    if (!status && failed) status = edm_fail(EDM_IO_FAILED, "%s: could not write: %s", path, strerror(errno));
    if (!status && rename(scratch, path)) status = edm_fail(EDM_IO_FAILED, "%s: %s", path, strerror(errno));
    if (status) remove(scratch);
  }
  free(scratch);
  return status;
}

edm_status edm_write_images(const char *path, const float *images, uint32_t count) {
  if (!path || !images) return edm_null("edm_write_images");
  return write_shaped(path, images, count, edm_compiled.image_shape);
}

edm_status edm_write_decoded(const char *path, const float *images, uint32_t count) {
  if (!path || !images) return edm_null("edm_write_decoded");
  if (!edm_decoded_floats())
    return edm_fail(EDM_BAD_ARGUMENT, "edm_write_decoded: this model draws images, not latents");
  return write_shaped(path, images, count, edm_compiled.decoded_shape);
}
