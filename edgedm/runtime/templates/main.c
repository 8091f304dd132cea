/* edgedm-sample: draw images with this bundle. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"
#include "runtime.h"

enum { EXIT_CHECK_FAILED = 1, EXIT_BAD_INPUT = 2, EXIT_INTERRUPTED = 130, PATH_ROOM = 4096, FILE_ROOM = PATH_ROOM + 256, MOST_CORES = 1024 };

static const char usage[] =
    "usage: edgedm-sample [options]\n"
    "  -n COUNT          images to draw (16)\n"
    "  --steps COUNT     sampler steps (%d)\n"
    "  --sampler NAME    ddim, ddpm or dpm-solver++ (%s)\n"
    "  --eta SHARE       DDIM's share of fresh noise, 0..1 (0)\n"
    "  --seed NUMBER     seed of the noise (0)\n"
    "  --label CLASS     class to draw (none)\n"
    "  --guidance SCALE  classifier-free guidance (1: off)\n"
    "  --condition FILE  a .npy array: the text condition, of a model that has one\n"
    "  --negative FILE   what guidance leads away from (zeros)\n"
    "  --latent          of a latent model: write latents, do not decode them\n"
    "  --start FILE      a .npy array of -n images to start from, with noise on top\n"
    "  --strength SHARE  with --start: the share of the steps that is executed (0.5)\n"
    "  --threads COUNT   threads (1)\n"
    "  --cores LIST      run on these cores: 0,2,3 or big\n"
    "  -o, --output FILE a .png grid or a .npy array (images.png)\n"
    "  --bundle DIR      the bundle (the folder above this program)\n"
    "  --times           print how long what took\n"
    "  --variant NAME    run these kernels (the best that this processor can, or EDGEDM_FEATURES)\n"
    "  --info            print the version and the variants, and which one runs here\n"
    "  --self-test       compare steps with the bundle's golden data instead\n";

typedef struct {
  edm_schedule schedule;
  edm_conditions conditions;
  edm_session_options session;
  edm_sample_options draw;
  const char *output, *bundle, *start, *variant, *texts[EDM_PASSES];
  bool self_test, times, latent, info, strength;
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

static const char *const samplers[] = {[EDM_DDIM] = "ddim", [EDM_DDPM] = "ddpm", [EDM_DPM_SOLVER_PP] = "dpm-solver++"};
enum { SAMPLERS = sizeof samplers / sizeof *samplers };

/* --- options --------------------------------------------------------------------------------------------- */

static bool refuse(const char *option, const char *text, const char *expected) {
  const char *dashes = strlen(option) == 1 ? "-" : "--";
  fprintf(stderr, "edgedm-sample: %s%s: expected %s, got \"%s\"\n", dashes, option, expected, text);
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
  return (*text >= '0' && *text <= '9' && !errno && !*end) || refuse("seed", text, "a whole number below 2^64");
}

static bool read_real(const char *option, const char *text, double *value) {
  char *end;
  *value = strtod(text, &end);
  return (end != text && !*end && *value == *value) || refuse(option, text, "a number");
}

/* Threads that are started later run where this one may. */
static bool read_cores(const char *text) {
  int cores[MOST_CORES], count = 0;
  if (!strcmp(text, "big")) {
    count = edm_big_cores(cores, MOST_CORES);
  } else {
    for (const char *at = text; *at;) {
      char *end;
      long core = strtol(at, &end, 10);
      if (count == MOST_CORES) return refuse("cores", text, "at most 1024 numbers");
      if (end == at || (*end && (*end != ',' || !end[1])) || core < 0 || core >= MOST_CORES)
        return refuse("cores", text, "big, or numbers as in 0,2,3");
      cores[count++] = (int)core;
      at = *end ? end + 1 : end;
    }
  }
  if (!edm_pin_thread(cores, count)) return true;
  fprintf(stderr, "edgedm-sample: --cores: %s\n", edm_last_error());
  return false;
}

static const struct option long_options[] = {
    {"steps", required_argument, NULL, 's'},   {"sampler", required_argument, NULL, 'm'},
    {"eta", required_argument, NULL, 'e'},     {"seed", required_argument, NULL, 'r'},
    {"label", required_argument, NULL, 'l'},   {"guidance", required_argument, NULL, 'g'},
    {"threads", required_argument, NULL, 't'}, {"output", required_argument, NULL, 'o'},
    {"start", required_argument, NULL, 'a'},   {"strength", required_argument, NULL, 'p'},
    {"condition", required_argument, NULL, 'C'}, {"negative", required_argument, NULL, 'N'},
    {"latent", no_argument, NULL, 'L'},
    {"cores", required_argument, NULL, 'c'},   {"times", no_argument, NULL, 'i'},
    {"bundle", required_argument, NULL, 'b'},  {"self-test", no_argument, NULL, 'T'},
    {"variant", required_argument, NULL, 'v'}, {"info", no_argument, NULL, 'I'},
    {"version", no_argument, NULL, 'I'},
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
    case 'm': {
      int found = 0;
      while (found < SAMPLERS && strcmp(text, samplers[found])) ++found;
      if (found == SAMPLERS) return refuse("sampler", text, "ddim, ddpm or dpm-solver++");
      wanted->schedule.sampler = (edm_sampler)found;
      break;
    }
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
    case 'a': wanted->start = text; break;
    case 'p':
      wanted->strength = true;
      right = read_real("strength", text, &wanted->draw.strength);
      break;
    case 'C': wanted->texts[EDM_CONDITIONAL] = text; break;
    case 'N': wanted->texts[EDM_UNCONDITIONAL] = text; break;
    case 'L': wanted->latent = true; break;
    case 'c': right = read_cores(text); break;
    case 'i': wanted->times = true; break;
    case 'o': wanted->output = text; break;
    case 'b': wanted->bundle = text; break;
    case 'T': wanted->self_test = true; break;
    case 'v': wanted->variant = text; break;
    case 'I': wanted->info = true; break;
    default: return false;
  }
  return right;
}

/* The folder above the one that this program lies in. */
static const char *own_bundle(const char *name) {
  static char path[PATH_ROOM];
#ifdef __wasm__ /* what runs is the engine; the name is as it was given */
  if ((size_t)snprintf(path, sizeof path, "%s", name) >= sizeof path) return ".";
#else
  (void)name;
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length < 0) return ".";
  path[length] = 0;
#endif
  for (int up = 0; up < 2; ++up) {
    char *slash = strrchr(path, '/');
    if (!slash) return ".";
    *slash = 0;
  }
  return path;
}

/* --- the three things that it does ----------------------------------------------------------------------- */

/* Read the files of text conditions into `memory`, the caller's to free, and prepare. */
static edm_status prepare(edm_session *session, const request *wanted, float **memory) {
  edm_conditions conditions = wanted->conditions;
  const float **places[] = {&conditions.encoder_hidden_states, &conditions.negative_encoder_hidden_states};
  int64_t shape[2];
  edm_condition_shape(shape);
  size_t floats = (size_t)edm_condition_floats();
  *memory = calloc(floats + 1, EDM_PASSES * sizeof **memory);
  if (!*memory) return edm_fail(EDM_NO_MEMORY, "no memory for conditions");
  for (int pass = 0; pass < EDM_PASSES; ++pass) {
    if (!wanted->texts[pass]) continue;
    edm_status status = floats ? edm_read_npy(wanted->texts[pass], shape, 2, *memory + (size_t)pass * floats)
                               : edm_fail(EDM_BAD_ARGUMENT, "%s: this model has no text condition", wanted->texts[pass]);
    if (status) return status;
    *places[pass] = *memory + (size_t)pass * floats;
  }
  return edm_prepare(session, &wanted->schedule, &conditions);
}

static edm_status decode(edm_session *session, const request *wanted, const float *latents) {
  uint32_t count = wanted->draw.images;
  size_t floats = (size_t)edm_decoded_floats();
  float *images = calloc(count, floats * sizeof *images);
  if (!images) return edm_fail(EDM_NO_MEMORY, "no memory for %u images", count);
  edm_status status = EDM_OK;
  for (uint32_t i = 0; i < count && !status; ++i)
    status = edm_decode(session, latents + i * edm_image_floats(), images + i * floats);
  if (!status) status = edm_write_decoded(wanted->output, images, count);
  free(images);
  return status;
}

/* The output's kind is checked before anything is drawn. */
static edm_status check_output(const request *wanted) {
  size_t length = strlen(wanted->output);
  bool npy = length > 4 && !strcmp(wanted->output + length - 4, ".npy");
  bool decodes = edm_decoded_floats() && !wanted->latent;
  if (wanted->latent && !edm_decoded_floats())
    return edm_fail(EDM_BAD_ARGUMENT, "--latent: this model draws images, it has no latents");
  if (wanted->latent && !npy)
    return edm_fail(EDM_BAD_ARGUMENT, "--latent: expected an output that ends in .npy, got %s", wanted->output);
  return edm_check_output(wanted->output, wanted->draw.images,
                          decodes ? edm_compiled.decoded_shape : edm_compiled.image_shape);
}

static edm_status draw(edm_session *session, const request *wanted) {
  edm_sample_options options = wanted->draw;
  size_t bytes = (size_t)edm_image_floats() * sizeof(float); /* a session holds more, so that this does not wrap */
  float *images = NULL, *start = NULL, *texts = NULL;
  bool visible = isatty(STDERR_FILENO) != 0;
  int first = 0;
  edm_status status = check_output(wanted);
  if (!status) status = prepare(session, wanted, &texts);
  if (!status) images = calloc(options.images, bytes);
  if (!status && wanted->start) start = calloc(options.images, bytes);
  if (!status && (!images || (wanted->start && !start)))
    status = edm_fail(EDM_NO_MEMORY, "no memory for %u images", options.images);
  int64_t shape[4] = {options.images};
  edm_image_shape(shape + 1);
  if (!status && start) status = edm_read_npy(wanted->start, shape, 4, start);
  options.start = start;
  if (!status) status = edm_first_step(session, &options, &first);
  edm_times begun = edm_now();
  if (!status) status = edm_sample(session, &options, images, show_progress, &visible);
  if (visible) fprintf(stderr, "\r     \r");
  edm_times ended = edm_now();
  uint64_t executed = (uint64_t)options.images * (uint64_t)(wanted->schedule.steps - first);
  if (!status && wanted->times) edm_print_times(&begun, &ended, executed);
  if (!status)
    status = edm_decoded_floats() && !wanted->latent ? decode(session, wanted, images)
                                                     : edm_write_images(wanted->output, images, options.images);
  free(texts);
  free(images);
  free(start);
  return status;
}

/* Golden data are followed only if they are those that this model was compiled with. */
static edm_status check_golden(const char *path, const edm_digest *known, bool may_lack) {
  struct stat found;
  if (stat(path, &found))
    return may_lack && errno == ENOENT ? EDM_OK : edm_fail(EDM_BAD_FILE, "%s: %s", path, strerror(errno));
  if (!S_ISREG(found.st_mode)) return edm_fail(EDM_BAD_FILE, "%s: is no file", path);
  if (!known->bytes) return edm_fail(EDM_BAD_FILE, "%s: this model was compiled without such golden data", path);
  if ((uint64_t)found.st_size != known->bytes)
    return edm_fail(EDM_BAD_FILE, "%s: not the golden data that this model was compiled with: expected %llu bytes, "
                    "found %llu", path, (unsigned long long)known->bytes, (unsigned long long)found.st_size);
  FILE *file = fopen(path, "rb");
  if (!file) return edm_fail(EDM_BAD_FILE, "%s: %s", path, strerror(errno));
  uint8_t sha256[32];
  bool read = edm_sha256_file(file, sha256);
  fclose(file);
  if (!read) return edm_fail(EDM_BAD_FILE, "%s: cannot be read", path);
  if (!memcmp(sha256, known->sha256, sizeof sha256)) return EDM_OK;
  return edm_fail(EDM_BAD_FILE, "%s: not the golden data that this model was compiled with (SHA-256 differs)", path);
}

static edm_status self_test(edm_session *session, const request *wanted, bool *passed) {
  char golden[FILE_ROOM], layers[FILE_ROOM];
  const char *variant = edm_model_variant(session->model);
  const char *own = edm_compiled.variant_count > 1 ? variant : ""; /* each has calls, and so layers, of its own */
  snprintf(golden, sizeof golden, "%s/golden/golden.bin", wanted->bundle);
  snprintf(layers, sizeof layers, "%s/golden/layers%s%s.bin", wanted->bundle, *own ? "." : "", own);
  edm_status status = check_golden(golden, &edm_compiled.golden, false);
  if (!status) status = check_golden(layers, &session->model->variant->layers, true);
  if (status) return status;
  printf("variant %s\n", variant);
  return edm_self_test(session, golden, layers, passed);
}

/* Also where no variant runs. */
static edm_status tell(const request *wanted) {
  const edm_variant *picked = NULL;
  edm_status status = edm_pick_variant(wanted->variant, &picked);
  printf("edgedm %s\n", edm_compiled.edgedm);
  for (uint32_t i = 0; i < edm_compiled.variant_count; ++i) {
    const edm_variant *each = &edm_compiled.variants[i];
    char lacking[256];
    bool lacks = edm_variant_lacks(each, lacking, sizeof lacking);
    printf("variant %s: %s%s\n", each->name,
           lacks ? "this processor lacks " : !status && each == picked ? "runs" : "could run", lacking);
  }
  return status;
}

static edm_status run(const request *wanted, bool *passed) {
  char weights[FILE_ROOM];
  if (wanted->info) return tell(wanted);
  if (strlen(wanted->bundle) >= PATH_ROOM) return edm_fail(EDM_BAD_ARGUMENT, "--bundle: the path is too long");
  snprintf(weights, sizeof weights, "%s/weights.bin", wanted->bundle);
  edm_model *model = NULL;
  edm_session *session = NULL;
  edm_source source = {.path = weights, .variant = wanted->variant};
  edm_status status = edm_open(&source, &model);
  if (!status) status = edm_session_create(model, &wanted->session, &session);
  if (!status) status = wanted->self_test ? self_test(session, wanted, passed) : draw(session, wanted);
  edm_session_free(session);
  edm_close(model);
  return status;
}

int main(int count, char **arguments) {
  const char *default_sampler = samplers[edm_compiled.default_sampler];
  request wanted = {.schedule = {.steps = edm_compiled.default_steps, .sampler = edm_compiled.default_sampler},
                    .conditions = {.label = -1, .guidance = 1.0F},
                    .session = {.threads = 1},
                    .draw = {.images = 16, .strength = 0.5},
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
  if (wanted.strength && !wanted.start) {
    fprintf(stderr, "edgedm-sample: --strength: there is no --start whose images it is for\n");
    return EXIT_BAD_INPUT;
  }
  if (!wanted.bundle) wanted.bundle = own_bundle(arguments[0]);
  signal(SIGINT, interrupt);
#ifdef SIGXFSZ
  signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is one that cannot be written */
#endif
  bool passed = true;
  edm_status status = run(&wanted, &passed);
  if (status == EDM_CANCELLED) return EXIT_INTERRUPTED;
  if (status) {
    fprintf(stderr, "edgedm-sample: %s\n", edm_last_error());
    return EXIT_BAD_INPUT;
  }
  return passed ? 0 : EXIT_CHECK_FAILED;
}
