package org.edgedm;

import java.nio.charset.StandardCharsets;

/** What the C library refused or could not do, in its words. */
public final class EdgedmException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** The kinds of errors, in the order of edm_status. */
  public enum Reason {
    /** The model cannot do what was asked for. */
    BAD_ARGUMENT,
    /** The weights are missing, truncated or not those of this model. */
    BAD_FILE,
    /** There is not enough memory. */
    NO_MEMORY,
    /** A kernel refused its arguments: a defect of the library. */
    KERNEL_FAILED,
    /** {@link Session#cancel} was called, or the progress said so. */
    CANCELLED,
    /** A file could not be written. */
    IO_FAILED
  }

  private final Reason reason;

  EdgedmException(int status, byte[] message) {
    super(new String(message, StandardCharsets.UTF_8));
    reason = Reason.values()[status - 1];
  }

  /** What kind of error it was. */
  public Reason reason() {
    return reason;
  }
}
