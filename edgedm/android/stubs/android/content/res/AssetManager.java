package android.content.res;

import java.io.IOException;
import java.io.InputStream;

/** The methods that org.edgedm.android calls, to compile against; Android has the class. */
public final class AssetManager {
  private AssetManager() {}

  public AssetFileDescriptor openFd(String path) throws IOException {
    throw new UnsupportedOperationException();
  }

  public InputStream open(String path) throws IOException {
    throw new UnsupportedOperationException();
  }
}
