/* edgedm-sample: draw images with this bundle. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime.h"

enum { EXIT_CHECK_FAILED = 1, EXIT_BAD_INPUT = 2, EXIT_INTERRUPTED = 130, PATH_ROOM = 4096 };

static const char usage[] =
    "usage: edgedm-sample [options]\n"
    "  -n COUNT          images to draw (16)\n"
    "  --steps COUNT     sampler steps (%d)\n"
    "  --sampler NAME    ddim or ddpm (%s)\n"
    "  --eta SHARE       DDIM's share of fresh noise, 0..1 (0)\n"
    "  --seed NUMBER     seed of the noise (0)\n"
    "  --label CLASS     class to draw (none)\n"
    "  --guidance SCALE  classifier-free guidance (1: off)\n"
    "  --threads COUNT   threads (1)\n"
    "  -o, --output FILE a .png grid or a .npy array (images.png)\n"
    "  --bundle DIR      the bundle (the folder above this program)\n"
    "  --self-test       compare steps with the bundle's golden data instead\n";

typedef struct {
  edm_schedule schedule;
  edm_conditions conditions;
  edm_session_options session;
  edm_sample_options draw;
  const char *output, *bundle;
  bool self_test;
} request;

static volatile sig_atomic_t interrupted;

static void interrupt(int number) {
  (void)number;
  interrupted = 1;
}

static int show_progress(void *user, uint64_t done, uint64_t total) {
  const bool *visible = user;
  if (*visible) fprintf(stderr, "\r%3llu %%", (unsigned long long)(done * 100 / total));
  return interrupted;
}

/* --- options --------------------------------------------------------------------------------------------- */

static bool refuse(const char *option, const char *text, const char *expected) {
  fprintf(stderr, "edgedm-sample: --%s: expected %s, got \"%s\"\n", option, expected, text);
  return false;
}

static bool read_integer(const char *option, const char *text, long long low, long long high, long long *value) {
  char *end;
  errno = 0;
  *value = strtoll(text, &end, 10);
  if (!errno && end != text && !*end && *value >= low && *value <= high) return true;
  char expected[80];
  snprintf(expected, sizeof expected, "a whole number in %lld..%lld", low, high);
  return refuse(option, text, expected);
}

static bool read_seed(const char *text, uint64_t *value) {
  char *end;
  errno = 0;
  *value = strtoull(text, &end, 10);
  return (!errno && end != text && !*end && *text != '-') || refuse("seed", text, "a whole number below 2^64");
}

static bool read_real(const char *option, const char *text, double *value) {
  char *end;
  *value = strtod(text, &end);
  return (end != text && !*end && *value == *value) || refuse(option, text, "a number");
}

static const struct option long_options[] = {
    {"steps", required_argument, NULL, 's'},   {"sampler", required_argument, NULL, 'm'},
    {"eta", required_argument, NULL, 'e'},     {"seed", required_argument, NULL, 'r'},
    {"label", required_argument, NULL, 'l'},   {"guidance", required_argument, NULL, 'g'},
    {"threads", required_argument, NULL, 't'}, {"output", required_argument, NULL, 'o'},
    {"bundle", required_argument, NULL, 'b'},  {"self-test", no_argument, NULL, 'T'},
    {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};

static bool read_option(int option, const char *text, request *wanted) {
  long long number = 0;
  double real = 0.0;
  bool right = true;
  switch (option) {
    case 'n':
      right = read_integer("n", text, 1, 1000000, &number);
      wanted->draw.images = (uint32_t)number;
      break;
    case 's':
      right = read_integer("steps", text, 1, 1000000, &number);
      wanted->schedule.steps = (int)number;
      break;
    case 'm':
      if (strcmp(text, "ddim") && strcmp(text, "ddpm")) return refuse("sampler", text, "ddim or ddpm");
      wanted->schedule.sampler = strcmp(text, "ddpm") ? EDM_DDIM : EDM_DDPM;
      break;
    case 'e': right = read_real("eta", text, &wanted->schedule.eta); break;
    case 'r': right = read_seed(text, &wanted->draw.seed); break;
    case 'l':
      right = read_integer("label", text, 0, 1000000, &number);
      wanted->conditions.label = number;
      break;
    case 'g':
      right = read_real("guidance", text, &real);
      wanted->conditions.guidance = (float)real;
      break;
    case 't':
      right = read_integer("threads", text, 1, 1024, &number);
      wanted->session.threads = (int)number;
      break;
    case 'o': wanted->output = text; break;
    case 'b': wanted->bundle = text; break;
    case 'T': wanted->self_test = true; break;
    default: return false;
  }
  return right;
}

/* The folder above the one that this program lies in. */
static const char *own_bundle(void) {
  static char path[PATH_ROOM];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length < 0) return ".";
  path[length] = 0;
  for (int up = 0; up < 2; ++up) {
    char *slash = strrchr(path, '/');
    if (!slash) return ".";
    *slash = 0;
  }
  return path;
}

/* --- the two things that it does ------------------------------------------------------------------------- */

static edm_status draw(edm_session *session, const request *wanted) {
  float *images = calloc((size_t)wanted->draw.images * (size_t)edm_image_floats(), sizeof *images);
  if (!images) return edm_fail(EDM_NO_MEMORY, "no memory for %u images", wanted->draw.images);
  bool visible = isatty(STDERR_FILENO) != 0;
  edm_status status = edm_prepare(session, &wanted->schedule, &wanted->conditions);
  if (!status) status = edm_sample(session, &wanted->draw, images, show_progress, &visible);
  if (visible) fprintf(stderr, "\r     \r");
  if (!status) status = edm_write_images(wanted->output, images, wanted->draw.images);
  free(images);
  return status;
}

static edm_status run(const request *wanted, bool *passed) {
  char weights[PATH_ROOM + 32], golden[PATH_ROOM + 32];
  if (strlen(wanted->bundle) >= PATH_ROOM) return edm_fail(EDM_BAD_ARGUMENT, "--bundle: the path is too long");
  snprintf(weights, sizeof weights, "%s/weights.bin", wanted->bundle);
  snprintf(golden, sizeof golden, "%s/golden/golden.bin", wanted->bundle);
  edm_model *model = NULL;
  edm_session *session = NULL;
  edm_source source = {.path = weights};
  edm_status status = edm_open(&source, &model);
  if (!status) status = edm_session_create(model, &wanted->session, &session);
  if (!status) status = wanted->self_test ? edm_self_test(session, golden, passed) : draw(session, wanted);
  edm_session_free(session);
  edm_close(model);
  return status;
}

int main(int count, char **arguments) {
  const char *default_sampler = edm_compiled.default_sampler == EDM_DDPM ? "ddpm" : "ddim";
  request wanted = {.schedule = {.steps = edm_compiled.default_steps, .sampler = edm_compiled.default_sampler},
                    .conditions = {.label = -1, .guidance = 1.0F},
                    .session = {.threads = 1},
                    .draw = {.images = 16},
                    .output = "images.png"};
  int option;
  while ((option = getopt_long(count, arguments, "n:o:h", long_options, NULL)) != -1) {
    if (option == 'h') return printf(usage, edm_compiled.default_steps, default_sampler) < 0;
    if (!read_option(option, optarg, &wanted)) return EXIT_BAD_INPUT;
  }
  if (optind < count) {
    fprintf(stderr, "edgedm-sample: unexpected \"%s\" (see --help)\n", arguments[optind]);
    return EXIT_BAD_INPUT;
  }
  if (!wanted.bundle) wanted.bundle = own_bundle();
  signal(SIGINT, interrupt);
  bool passed = true;
  edm_status status = run(&wanted, &passed);
  if (status == EDM_CANCELLED) return EXIT_INTERRUPTED;
  if (status) {
    fprintf(stderr, "edgedm-sample: %s\n", edm_last_error());
    return EXIT_BAD_INPUT;
  }
  return passed ? 0 : EXIT_CHECK_FAILED;
}
