package org.edgedm;

/** Told while images are drawn. */
public interface Progress {
  /**
   * Called on the thread that draws, once for every step of every image.
   *
   * @return whether to go on; false cancels
   */
  boolean step(long done, long total);
}
