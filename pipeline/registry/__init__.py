"""Where releases live: files by digest, releases by version, channels by name; a folder or S3 behind one protocol."""
