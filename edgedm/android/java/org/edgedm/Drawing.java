package org.edgedm;

/** Which images to draw. */
public final class Drawing {
  long seed;
  int first;
  int images = 1;
  float[] start;
  double strength = 1;

  /** The seed of the noise, all 64 bits of it; 0 if not set. */
  public Drawing seed(long seed) {
    this.seed = seed;
    return this;
  }

  /** The number of the first image: image i of a seed is always the same. 0 if not set. */
  public Drawing first(int first) {
    this.first = first;
    return this;
  }

  /** How many images; 1 if not set. */
  public Drawing images(int images) {
    this.images = images;
    return this;
  }

  /**
   * Images to start from, as many as are drawn.
   *
   * @param strength the share of the steps that is executed, the last ones: above 0, up to 1
   */
  public Drawing start(float[] images, double strength) {
    this.start = images.clone();
    this.strength = strength;
    return this;
  }
}
