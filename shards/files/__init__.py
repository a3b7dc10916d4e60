"""Files and folders that commands write: atomic writes, locks, the overwrite guard, records, and parallel work."""
