/* What the parts of edgedm-sample share. */
#ifndef EDM_PROGRAM_H
#define EDM_PROGRAM_H

#include "runtime.h"

/* --- self_test.c ----------------------------------------------------------------------------------------- */
/* Teacher-forced steps and layers over golden data; prints one line each and returns whether all are close enough. */
edm_status edm_self_test(edm_session *session, const char *golden_path, const char *layers_path, bool *passed);

/* --- layers.c -------------------------------------------------------------------------------------------- */
/* Every kernel call alone over golden data, if the file is there; prints the first that is off, and clears *passed. */
edm_status edm_check_layers(edm_session *session, const char *path, bool *passed);

/* --- read_npy.c ------------------------------------------------------------------------------------------ */
/* Read a .npy array of float32 of this shape; one more axis of size 1 may stand before it. */
edm_status edm_read_npy(const char *path, const int64_t *shape, int rank, float *values);

/* --- times.c --------------------------------------------------------------------------------------------- */
typedef struct { /* seconds since some moment, and processor time of this process since it began */
  double clock, processor;
} edm_times;

edm_times edm_now(void);
/* Print the processor time from the start of the process to `begun`, when the first step began, the time of each of the
 * steps up to `ended`, and the most memory that the process had. */
void edm_print_times(const edm_times *begun, const edm_times *ended, uint64_t steps);

#endif
