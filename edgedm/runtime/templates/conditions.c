/* What a session draws: a class, a text condition, and how strongly guidance pulls towards them. */
#include <math.h>
#include <string.h>

#include "runtime.h"

void edm_condition_shape(int64_t shape[2]) {
  memcpy(shape, edm_compiled.condition_shape, sizeof edm_compiled.condition_shape);
}

uint64_t edm_condition_floats(void) {
  return (uint64_t)(edm_compiled.condition_shape[0] * edm_compiled.condition_shape[1]);
}

/* Copy a condition, or zeros for none. */
static edm_status take_text(const char *name, const float *given, float *taken) {
  uint64_t count = edm_condition_floats();
  memset(taken, 0, (size_t)count * sizeof *taken);
  for (uint64_t i = 0; given && i < count; ++i) {
    if (!isfinite(given[i]))
      return edm_fail(EDM_BAD_ARGUMENT, "%s: value %llu of %llu is not finite", name, (unsigned long long)i,
                      (unsigned long long)count);
    taken[i] = given[i];
  }
  return EDM_OK;
}

static edm_status choose_text(edm_session *session, const edm_conditions *wanted) {
  const int64_t *shape = edm_compiled.condition_shape;
  bool given = wanted->encoder_hidden_states || wanted->negative_encoder_hidden_states;
  if (!edm_condition_floats())
    return given ? edm_fail(EDM_BAD_ARGUMENT, "condition: this model has no text condition") : EDM_OK;
  if (!wanted->encoder_hidden_states)
    return edm_fail(EDM_BAD_ARGUMENT, "condition: this model cannot draw without one, %lld vectors of %lld floats",
                    (long long)shape[0], (long long)shape[1]);
  edm_status status = take_text("condition", wanted->encoder_hidden_states, session->texts[EDM_CONDITIONAL]);
  if (status) return status;
  return take_text("negative condition", wanted->negative_encoder_hidden_states, session->texts[EDM_UNCONDITIONAL]);
}

static edm_status choose_label(edm_session *session, const edm_conditions *wanted) {
  const edm_description *it = &edm_compiled;
  int64_t label = wanted->label;
  if (it->classes == 0) {
    if (label >= 0) return edm_fail(EDM_BAD_ARGUMENT, "label %lld: this model has no classes", (long long)label);
    return EDM_OK;
  }
  if (label < -1 || label >= it->classes)
    return edm_fail(EDM_BAD_ARGUMENT, "label: expected 0..%lld, got %lld", (long long)it->classes - 1,
                    (long long)label);
  if (label < 0 && it->null_class < 0)
    return edm_fail(EDM_BAD_ARGUMENT, "label: this model cannot draw without one (0..%lld)",
                    (long long)it->classes - 1);
  if (label < 0) label = it->null_class;
  session->labels[EDM_CONDITIONAL] = label;
  session->labels[EDM_UNCONDITIONAL] = it->null_class;
  return EDM_OK;
}

edm_status edm_choose_conditions(edm_session *session, const edm_conditions *wanted) {
  if (!isfinite(wanted->guidance))
    return edm_fail(EDM_BAD_ARGUMENT, "guidance: expected a finite number, got %g", (double)wanted->guidance);
  session->guidance = wanted->guidance == 0.0F ? 1.0F : wanted->guidance;
  session->passes = 1;
  edm_status status = choose_text(session, wanted);
  if (!status) status = choose_label(session, wanted);
  if (status || session->guidance == 1.0F) return status;
  bool classes = edm_compiled.classes > 0, text = edm_condition_floats() > 0;
  if (classes && edm_compiled.null_class < 0)
    return edm_fail(EDM_BAD_ARGUMENT, "guidance %g: this model has no unconditional class; use 1",
                    (double)session->guidance);
  if (text || (classes && session->labels[EDM_CONDITIONAL] != edm_compiled.null_class)) session->passes = 2;
  return EDM_OK;
}
