/* The message of this thread's last error. */
#include <stdarg.h>
#include <stdio.h>

#include "runtime.h"

static _Thread_local char message[512];

const char *edm_last_error(void) { return message; }

edm_status edm_fail(edm_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}
