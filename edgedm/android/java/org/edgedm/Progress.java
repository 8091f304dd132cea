package org.edgedm;

/**
 * Told while images are drawn. The session that draws them may be cancelled from here, and nothing else: its other
 * methods throw an IllegalStateException. Other sessions, of the same model too, may be used as from anywhere.
 */
public interface Progress {
  /**
   * Called on the thread that draws, once for every step of every image.
   *
   * @return whether to go on; false cancels
   */
  boolean step(long done, long total);
}
