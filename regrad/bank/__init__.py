"""The Gradient Bank: codecs, manifest, writer, reader."""
