"""Android: shared libraries with a Java interface, what they must look like, and the AAR that an app takes."""
