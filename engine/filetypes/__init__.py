"""The file types that uploads may have, and detection of a type by first bytes; pure, reads no files."""
