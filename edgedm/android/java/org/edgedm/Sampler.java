package org.edgedm;

/** How an image comes from noise, in the order of edm_sampler. */
public enum Sampler {
  /** DDIM; {@link Schedule#eta} adds fresh noise. */
  DDIM,
  /** DDPM: fresh noise in every step. */
  DDPM,
  /** DPM-Solver++ 2M: good with few steps. */
  DPM_SOLVER_PP
}
