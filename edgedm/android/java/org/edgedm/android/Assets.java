package org.edgedm.android;

import android.content.res.AssetFileDescriptor;
import android.content.res.AssetManager;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.edgedm.Model;

/** Opens models whose weights came with the app, as an AAR of edgedm brings them. */
public final class Assets {
  private Assets() {}

  /**
   * Open the model called {@code name}. An asset that is stored as it is is mapped into memory; one that the app's
   * build compressed is read (androidResources.noCompress "bin" in its build file spares that).
   */
  public static Model open(AssetManager assets, String name) throws IOException {
    return open(assets, name, null);
  }

  /** Open the model called {@code name} to run the variant of that name, null: the best; see {@link Model#variants}. */
  public static Model open(AssetManager assets, String name, String variant) throws IOException {
    String folder = "edgedm/" + name + "/";
    FileNotFoundException missing = null;
    for (String file : new String[] {Model.abi(name) + ".bin", "all.bin"}) {
      try {
        return openFile(assets, name, folder + file, variant);
      } catch (FileNotFoundException absent) {
        missing = absent;
      }
    }
    throw missing;
  }

  private static Model openFile(AssetManager assets, String name, String path, String variant) throws IOException {
    try (AssetFileDescriptor file = assets.openFd(path)) {
      int fd = file.getParcelFileDescriptor().getFd();
      return Model.open(name, fd, file.getStartOffset(), file.getLength(), variant);
    } catch (FileNotFoundException compressed) {
      try (InputStream stream = assets.open(path)) {
        return Model.open(name, stream, variant);
      }
    }
  }
}
