/* The message of this thread's last error. */
#include <stdarg.h>
#include <stdio.h>

#include "runtime.h"

/* Empty, but not of zeros alone: a static program of which no thread-local variable has a value begins its data a page
 * further in the file than it must, 64 KiB on ARM. */
static _Thread_local char message[512] = "\0.";

void edm_enter_errors(void) { (void)*(volatile char *)message; }

const char *edm_last_error(void) { return message; }

edm_status edm_fail(edm_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

edm_status edm_busy(const char *function) {
  return edm_fail(EDM_BAD_ARGUMENT, "%s: the session is in use; neither a progress callback of its own nor another thread may call it", function);
}

edm_status edm_null(const char *function) {
  return edm_fail(EDM_BAD_ARGUMENT, "%s: an argument that must point to something is NULL", function);
}
