/* Where threads run: the fast cores of a machine that has slow ones too. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "runtime.h"

enum { MOST_CORES = 1024 }; /* of an edm_core_set */

#ifndef EDM_CPU_FOLDER
#define EDM_CPU_FOLDER "/sys/devices/system/cpu"
#endif

/* The number in cpu<core>/<file> there, or -1. */
static long core_figure(int core, const char *file) {
  char path[512];
  snprintf(path, sizeof path, "%s/cpu%d/%s", EDM_CPU_FOLDER, core, file);
  FILE *open = fopen(path, "r");
  long value = -1;
  if (!open) return -1;
  if (fscanf(open, "%ld", &value) != 1) value = -1;
  fclose(open);
  return value;
}

/* Fast is above the middle between the slowest and the fastest; cores that differ by a tenth are alike. A core whose
 * speed is below 0 is off. */
static int choose_fast(const long *speeds, int count, int *cores, int room) {
  long slowest = -1, fastest = -1;
  for (int i = 0; i < count; ++i) {
    if (speeds[i] >= 0 && (slowest < 0 || speeds[i] < slowest)) slowest = speeds[i];
    if (speeds[i] > fastest) fastest = speeds[i];
  }
  bool alike = slowest * 10 >= fastest * 9;
  int found = 0;
  for (int i = 0; i < count; ++i) {
    if (speeds[i] < 0 || (!alike && speeds[i] * 2 <= slowest + fastest)) continue;
    if (found < room) cores[found] = i;
    ++found;
  }
  return found;
}

int edm_big_cores(int *cores, int room) {
  static const char *const files[] = {"cpu_capacity", "cpufreq/cpuinfo_max_freq"}; /* ARM says the former */
  long speeds[MOST_CORES], configured = sysconf(_SC_NPROCESSORS_CONF);
  int count = configured < 1 ? 0 : configured > MOST_CORES ? MOST_CORES : (int)configured;
  for (int kind = 0; kind < 2; ++kind) {
    bool known = false;
    for (int i = 0; i < count; ++i) known = (speeds[i] = core_figure(i, files[kind])) >= 0 || known;
    if (known) return choose_fast(speeds, count, cores, room);
  }
  for (int i = 0; i < count; ++i) speeds[i] = 1; /* the system does not tell them apart */
  return choose_fast(speeds, count, cores, room);
}

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>

edm_status edm_enter_cores(const int *cores, int count, edm_core_set *before) {
  edm_core_set wanted = {{0}};
  memset(before, 0, sizeof *before);
  for (int i = 0; i < count; ++i) {
    if (cores[i] < 0 || cores[i] >= MOST_CORES)
      return edm_fail(EDM_BAD_ARGUMENT, "cores: expected 0..%d, got %d", MOST_CORES - 1, cores[i]);
    wanted.words[cores[i] / 64] |= (uint64_t)1 << (cores[i] % 64);
  }
  if (syscall(SYS_sched_getaffinity, 0, sizeof *before, before) < 0 ||
      syscall(SYS_sched_setaffinity, 0, sizeof wanted, &wanted) < 0)
    return edm_fail(EDM_BAD_ARGUMENT, "cores: the system allows none of the %d that were named: %s", count,
                    strerror(errno));
  return EDM_OK;
}

void edm_leave_cores(const edm_core_set *before) { syscall(SYS_sched_setaffinity, 0, sizeof *before, before); }

#else

edm_status edm_enter_cores(const int *cores, int count, edm_core_set *before) {
  (void)cores, (void)before;
  return edm_fail(EDM_BAD_ARGUMENT, "cores: this system cannot bind threads to cores (%d were named)", count);
}

void edm_leave_cores(const edm_core_set *before) { (void)before; }

#endif

edm_status edm_pin_thread(const int *cores, int count) {
  edm_core_set before;
  if (!cores) return edm_null("edm_pin_thread");
  if (count < 1) return edm_fail(EDM_BAD_ARGUMENT, "cores: expected one or more, got %d", count);
  return edm_enter_cores(cores, count, &before);
}
