/* The decoder of a latent model: from what the sampler draws to an image. */
#include <string.h>

#include "runtime.h"

void edm_decoded_shape(int64_t shape[3]) {
  memcpy(shape, edm_compiled.decoded_shape, sizeof edm_compiled.decoded_shape);
}

uint64_t edm_decoded_floats(void) {
  const int64_t *shape = edm_compiled.decoded_shape;
  return (uint64_t)(shape[0] * shape[1] * shape[2]);
}

edm_status edm_decode(edm_session *session, const float *latent, float *image) {
  if (!session || !latent || !image) return edm_null("edm_decode");
  if (session->busy) return edm_busy("edm_decode");
  if (!edm_decoded_floats()) return edm_fail(EDM_BAD_ARGUMENT, "edm_decode: this model draws images, not latents");
  memcpy(session->latent, latent, (size_t)edm_image_floats() * sizeof *latent);
  void *inputs[] = {session->latent}, *outputs[] = {session->decoded};
  edm_pool *before = edm_pool_enter(session->pool);
  edm_status status = edm_instance_run(&session->decoder, inputs, outputs);
  edm_pool_enter(before);
  if (!status) memcpy(image, session->decoded, (size_t)edm_decoded_floats() * sizeof *image);
  return status;
}
