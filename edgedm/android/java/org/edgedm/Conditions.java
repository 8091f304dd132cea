package org.edgedm;

/** What the images are to show. */
public final class Conditions {
  long label = -1;
  float guidance = 1;
  float[] text;
  float[] negative;

  /** The class, 0 up to {@link Model#classes}; none if not set. */
  public Conditions label(long label) {
    this.label = label;
    return this;
  }

  /** The scale of classifier-free guidance; 1, which is off, if not set. */
  public Conditions guidance(float guidance) {
    this.guidance = guidance;
    return this;
  }

  /** A text's hidden states, tokens times their size, for a model that takes them. */
  public Conditions text(float[] hiddenStates) {
    this.text = hiddenStates.clone();
    return this;
  }

  /** What guidance leads away from; zeros if not set. */
  public Conditions negative(float[] hiddenStates) {
    this.negative = hiddenStates.clone();
    return this;
  }
}
