package org.edgedm;

/** Which steps lead from noise to an image. What is not set is as the model was compiled. */
public final class Schedule {
  int steps;
  Sampler sampler;
  double eta;
  long[] timesteps;

  /** How many steps, at timesteps that are spaced as the model's noise schedule says. */
  public Schedule steps(int steps) {
    this.steps = steps;
    return this;
  }

  /** By which sampler. */
  public Schedule sampler(Sampler sampler) {
    this.sampler = sampler;
    return this;
  }

  /** DDIM's share of fresh noise, 0 to 1; 0 if not set. */
  public Schedule eta(double eta) {
    this.eta = eta;
    return this;
  }

  /** The timesteps themselves, descending, in place of their number. */
  public Schedule timesteps(long... timesteps) {
    this.timesteps = timesteps.clone();
    return this;
  }
}
