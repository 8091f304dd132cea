package android.os;

/** The method that org.edgedm.android calls, to compile against; Android has the class. */
public class ParcelFileDescriptor {
  ParcelFileDescriptor() {}

  public int getFd() {
    throw new UnsupportedOperationException();
  }
}
