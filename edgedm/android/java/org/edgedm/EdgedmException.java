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
    IO_FAILED,
    /** The processor lacks what the kernels need, or what the variant that was asked for needs. */
    WRONG_MACHINE,
    /** What these classes have no name for: the library is newer than they are. The message says what it is. */
    OTHER
  }

  private final Reason reason;

  EdgedmException(int status, byte[] message) {
    super(new String(message, StandardCharsets.UTF_8));
    Reason[] named = Reason.values();
    reason = status > 0 && status < named.length ? named[status - 1] : Reason.OTHER;
  }

  /** What kind of error it was. */
  public Reason reason() {
    return reason;
  }
}
